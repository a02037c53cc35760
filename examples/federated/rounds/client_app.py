"""A client: loads what it is sent, trains on its own images, sends the same numbers back."""

import functools

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, message_size_mod

import dctps
from rounds import task

app = ClientApp(mods=[message_size_mod, arrays_size_mod])  # Flower's own count of the bytes


@functools.lru_cache
def network(**config):
    """Made once by a process that serves many clients; each loads all that the last has left in it."""
    return task.build(config)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    config, node = context.run_config, context.node_config
    model = dctps.load_trainable_state_(network(**config), message.content["arrays"].to_torch_state_dict())
    labels, client = task.data(config["dataset"]).train.labels, node["partition-id"]
    own = task.split(labels, node["num-partitions"], config["concentration"], config["seed"])[client]
    server_round = message.content["config"]["server-round"]
    seed = 1000 * server_round + client
    loss = task.fit(model, own, config, server_round, seed, context.state)
    metrics = MetricRecord({"num-examples": len(own), "loss": loss})
    content = RecordDict({"arrays": task.arrays_of(model, config), "metrics": metrics})
    return Message(content=content, reply_to=message)
