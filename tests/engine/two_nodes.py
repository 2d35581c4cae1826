"""Run by a test: a Ray cluster of two nodes on this machine, one CPU each, until standard input ends.

Prints the cluster's address, and node id → process id of the node that can be killed.
"""

import json
import sys

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
process = other.all_processes["raylet"][0].process
print(json.dumps({"address": cluster.address, "other": other.node_id, "pid": process.pid}), flush=True)
sys.stdin.read()
cluster.shutdown()
