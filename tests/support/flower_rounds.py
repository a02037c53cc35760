"""Rounds of the example's Flower app, with clients that fail; a script, as Flower wants a process of its own.

python -m tests.support.flower_rounds '{"num-server-rounds": 2}' '{"0": "nan"}' checked 3
"""

import copy
import json
import os
import sys
import time
import tomllib
from pathlib import Path

from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, message_size_mod
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from rounds import client_app, server_app

FOLDER = Path(client_app.__file__).parents[1]


def main(config, faults, strategy, clients=3):
    """Run with these settings; client i fails in each round as `faults[i]` says."""
    app = tomllib.loads((FOLDER / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    config = {**app["config"], **config}

    def configured(message, context, call_next):
        given = copy.copy(context)  # Flower refuses its own with another configuration
        given.run_config = config
        return fail(call_next(message, given), faults.get(str(context.node_config["partition-id"])))

    client = ClientApp(mods=[message_size_mod, arrays_size_mod, configured])
    client.train()(client_app.train)
    server = ServerApp()

    @server.main()
    def run(grid, context):
        context.run_config = config
        if strategy == "stock":
            server_app.Checked = lambda model, **options: FedAvg(**options)
        server_app.main(grid, context)

    resources = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(server, client, clients, backend_config={"client_resources": resources})


def fail(reply, fault):
    """The reply, or what comes of it."""
    if fault == "dies":
        raise RuntimeError("out of memory\nat a line of its own")
    if fault == "killed":
        os._exit(9)
    if fault == "late":
        time.sleep(30)
    state = reply.content["arrays"].to_torch_state_dict() if fault else {}
    if fault == "nan":
        state["numbers"][5] = float("nan")
    if fault == "shape":
        state["numbers"] = state["numbers"][1:]
    if fault == "key":
        state = {"weights": state["numbers"]}
    if fault == "count":
        reply.content["metrics"]["num-examples"] = float("inf")
    if fault:
        reply.content["arrays"] = ArrayRecord(state)
    return reply


if __name__ == "__main__":
    main(*map(json.loads, sys.argv[1:3]), sys.argv[3], int(sys.argv[4]))
