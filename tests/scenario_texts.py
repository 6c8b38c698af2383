"""A small scenario as text, for tests of the file format; every line is there for a reason a test relies on."""

SMALL = """\
name: small
seed: 1
steps: 3
warmup: 1
model:
  name: tiny
  layers: 2
  moe_layers: [0, 1]
  hidden: 1024
  experts: 16
  top_k: 2
  expert_width: 512
  dispatch_width: 1024
  attention: {heads: 8, score_width: 128, projection_parameters: 4194304, cache_bytes_per_token: 4096}
cluster: {kind: nvlink_nodes, gpu: h100-sxm, nodes: 2, gpus_per_node: 4, nic: 400 Gb/s}
parallel: {ep: 8}
workload: {phase: training, tokens_per_gpu: 256}
routing: {kind: lognormal, sigma: 1e-1}
policy:
  capacity: {rule: megatron, factor: 1.25}
  placement: {kind: contiguous}
compare:
  dropless: {capacity: null}
  tight: {capacity: {factor: 1.0}}
"""
