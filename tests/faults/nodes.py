"""A program: tasks of six assemblies on a cluster whose head has no CPU, while nodes join it and one leaves.

It prints, as JSON, the name of the node that ran each task, and what was asked of the autoscaler.
"""

import json
import os
import time
from typing import Any

from cluster.tasks import jobs

import ray  # isort: skip
from ray.autoscaler import sdk  # isort: skip
from ray.cluster_utils import Cluster  # isort: skip

ASSEMBLIES, EACH = "abcdef", 8


def where(task: tuple[str, int]) -> str:
    """The id of the node that this runs on."""
    time.sleep(0.2)
    return str(ray.get_runtime_context().get_node_id())


def main() -> None:
    jobs._REFRESH_S, jobs._BACKOFF_S = 0.3, 0.2
    asked: list[int] = []
    real = sdk.request_resources

    def ask(num_cpus: int) -> None:
        asked.append(num_cpus)
        real(num_cpus=num_cpus)

    sdk.request_resources = ask
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        os.environ["RAY_ADDRESS"] = cluster.address
        names: dict[str, str] = {}
        nodes: dict[str, Any] = {}

        def join(name: str) -> None:
            nodes[name] = cluster.add_node(num_cpus=2, wait=False)
            names[nodes[name].node_id] = name

        def on_result(index: int, node: str) -> None:
            ended.append(index)
            if len(ended) == 3:
                join("second")
            elif len(ended) == 24:
                cluster.remove_node(nodes["first"], allow_graceful=False)
                join("third")

        ended: list[int] = []
        join("first")
        tasks = [(name, number) for name in ASSEMBLIES for number in range(EACH)]
        found = jobs.run(
            where,
            tasks,
            near=jobs.Near(lambda task: task[0]),
            on_result=on_result,
        )
        ran = [names.get(node, "head") for node in found]
        print(json.dumps({"ran": ran, "asked": asked}))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
