"""A Flower app with nothing to learn, so that a round is Flower's own cost.

Flower keeps one copy of equal content. What each client sends, and with it the model of the next round, therefore
differs in each of its chunks from everything sent before.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

_POLL_S: Final = 0.5


def moved(model: np.ndarray, node: int, number: int) -> np.ndarray:
    """The model, float32 [d], with one number added that no other node or round adds."""
    result: np.ndarray = model + np.float32(np.random.default_rng([node, number]).uniform(0.01, 0.1))
    return result


def train(message: Message, context: Context) -> Message:
    """Reply to a model with what this client makes of it in this round."""
    [array] = message.content.array_records["arrays"].to_numpy_ndarrays()
    number = int(str(message.content.config_records["config"]["server-round"]))
    reply = RecordDict()
    reply["arrays"] = ArrayRecord([moved(array, context.node_id, number)])
    reply["metrics"] = MetricRecord({"num-examples": 8})
    return Message(content=reply, reply_to=message)


def main(grid: Grid, context: Context) -> None:
    """Run the rounds once all nodes are there, and write when each ended.

    The first line of the file ``times`` is when the first round began, each further one when a round ended, in s. A
    round in which a client was missing isn't one: a line that begins with ``failed`` says so, and the run ends.
    """
    config = context.run_config
    nodes = int(config["nodes"])
    times = Path(str(config["times"]))
    merged: list[int] = []

    def count(replies: list[RecordDict], _key: str) -> MetricRecord:
        merged.append(len(replies))
        return MetricRecord({"clients": len(replies)})

    def note(number: int, _arrays: ArrayRecord) -> None:
        complete = merged == [nodes] * number
        with times.open("a") as file:
            file.write(f"{time.time():.6f}\n" if complete else f"failed: round {number} lacked a client, {merged}\n")
        if not complete:
            raise RuntimeError(f"round {number} lacked a client")

    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(_POLL_S)
    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, train_metrics_aggr_fn=count
    )
    # Not a constant: equal chunks of one array would be kept once, too.
    model = np.linspace(-1.0, 1.0, int(config["parameters"]), dtype=np.float32)
    strategy.start(grid, ArrayRecord([model]), num_rounds=int(config["rounds"]), evaluate_fn=note)


# Called, not written as decorators: mypy finds these untyped where flwr isn't installed.
client = ClientApp()
client.train()(train)
server = ServerApp()
server.main()(main)
