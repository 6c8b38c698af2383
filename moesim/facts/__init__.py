"""Floor 1: frozen data. Arrays are read-only; everything is in SI units.

Letters in shapes: G GPUs, E experts, L MoE layers, S slots per layer, K links, T tokens of one layer and step over all
source GPUs, k choices per token.
"""
