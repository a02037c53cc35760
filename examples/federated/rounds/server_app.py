"""The server: Flower's FedAvg, before which replies that it could not average are set aside."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg

import dctps
from dctps.federated import CheckedReplies
from rounds import task

app = ServerApp()


class Checked(CheckedReplies, FedAvg):
    """FedAvg of the replies that fit the network."""


class CheckedAdam(CheckedReplies, FedAdam):
    """One step of Adam a round, at a rate that falls along a cosine; float32 goes out as it came in."""

    def aggregate_train(self, server_round, replies):
        """The mean of the clients' steps of gradient descent is the gradient of all."""
        self.eta = task.rate(self.config, self.config["server-lr"], server_round)
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None:
            arrays = ArrayRecord({k: Array(np.float32(a.numpy())) for k, a in arrays.items()})
        return arrays, metrics


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    config = context.run_config
    model = task.build(config)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        dctps.load_trainable_state_(model, arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": task.accuracy(model, config)})

    options = {"fraction_evaluate": 0.0}
    strategy = Checked(model, **options)
    if config["server-lr"]:
        strategy = CheckedAdam(model, beta_2=0.999, tau=1e-8, **options)
        strategy.config = config
    strategy.start(
        grid,
        task.arrays_of(model, config),
        num_rounds=config["num-server-rounds"],
        timeout=config["round-timeout"],
        evaluate_fn=evaluate,
    )
