"""The server: Flower's FedAvg, before which replies that it could not average are set aside."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import dctps
from dctps.federated import CheckedReplies
from rounds import task

app = ServerApp()


class Checked(CheckedReplies, FedAvg):
    """FedAvg of the replies that fit the network."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    config = context.run_config
    model = task.build(config)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        dctps.load_trainable_state_(model, arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": task.accuracy(model, config)})

    Checked(model, fraction_evaluate=0.0).start(
        grid,
        task.arrays_of(model, config),
        num_rounds=config["num-server-rounds"],
        timeout=config["round-timeout"],
        evaluate_fn=evaluate,
    )
