"""The figures behind the GPU presets: what data sheets promise, and what measurements reached.

Four traps of public numbers are settled here, once: a link's data sheet adds both directions, so half of it is written; sparse
arithmetic is halved; GB of a memory is written as the makers of the memory mean it (GiB); and what a kernel reached is a
figure of its own beside the peak, never a correction of it.
"""

from __future__ import annotations

from moesim.facts.gpu import Figure

READ = "2026-11"
"""When the sources below were read."""

AICONFIGURATOR = "ai-dynamo/aiconfigurator@095f58a"
INFERSIM = "alibaba/InferSim@f2293da:hardware/gpu.py"
DEEPEP = "deepseek-ai/DeepEP@dd758ca:docs/legacy.md"
VIDUR = "microsoft/vidur@7d47513:data/profiling/network/h100_dgx/send_recv.csv"
MORI = "ROCm/mori@624002c:tuning_configs"

ALL_TO_ALL = "all-to-all"
SMALL = "small all-to-all"
PAIR = "point to point"
KERNEL = "kernel"
DEVICE = "device query"
EXPERIMENTS = (ALL_TO_ALL, SMALL, PAIR, KERNEL, DEVICE)
"""What an achievable figure was measured with. The bandwidth of simulated links follows from ``all-to-all`` figures only: every GPU
exchanges large messages with every other. A ``small all-to-all`` holds latencies as well, and ``point to point`` uses one pair only."""

GIB = 2.0**30
MIB = 2.0**20


def _system(name: str) -> str:
    return f"{AICONFIGURATOR}:systems/{name}.yaml"


def _data(path: str) -> str:
    return f"{AICONFIGURATOR}:systems/data/{path}"


def _flops(source: str, **teraflops: float) -> tuple[Figure, ...]:
    return tuple(
        Figure(quantity=f"flops.{dtype}", value=value * 1e12, unit="flop/s", density="dense", source=source, date=READ)
        for dtype, value in teraflops.items()
    )


def _peak(quantity: str, value: float, unit: str, source: str, *, direction: str = "", basis: str = "datasheet") -> Figure:
    return Figure(quantity=quantity, value=value, unit=unit, direction=direction, basis=basis, source=source, date=READ)


def _reached(
    quantity: str, value: float, unit: str, source: str, *, experiment: str, direction: str = "", density: str = "", basis: str = "measured"
) -> Figure:
    return Figure(
        quantity=quantity,
        value=value,
        unit=unit,
        direction=direction,
        density=density,
        kind="achievable",
        basis=basis,
        experiment=experiment,
        source=source,
        date=READ,
    )


def _one_way(quantity: str, gigabytes: float, source: str) -> Figure:
    return _peak(quantity, gigabytes * 1e9, "B/s", source, direction="one way")


def _hbm(gigabytes: float, source: str) -> Figure:
    return _peak("memory_bandwidth", gigabytes * 1e9, "B/s", source)


HOPPER_NIC = _reached(
    "nic",
    44.0e9,
    "B/s",
    f"{_data('h100_sxm/comm/sglang/0.5.6.post2/wideep_deepep_normal_perf.parquet')} (Apache-2.0): DeepEP normal dispatch of 131072 FP8 "
    "tokens, 2 nodes, 24 SMs; 7392 B of each token cross with probability 0.997. The source does not tell H100 from H200, hence assumed. "
    "Rail-aligned EFA reaches 43.7 of 50 GB/s (uccl-project/uccl@da914a2 efa_alltoall_results.md)",
    direction="one way",
    experiment=ALL_TO_ALL,
    basis="assumed",
)
"""Measured on nodes of eight Hopper GPUs with one 400 Gb/s card each."""
HOPPER_SMS = "NVIDIA H100 architecture white paper, not read again: 132 SMs in the SXM5 part"

FIGURES: dict[str, tuple[Figure, ...]] = {
    "a100-sxm-80": (
        *_flops(_system("a100_sxm"), bf16=312),
        _peak("memory", 80 * GIB, "B", f"{_system('a100_sxm')}; five stacks of 16 GiB"),
        _hbm(2039, _system("a100_sxm")),
        _one_way("nvlink", 300, f"{_system('a100_sxm')}; the data sheet says 600 GB/s both ways"),
        _one_way("nic", 25, f"{_system('a100_sxm')}; one 200 Gb/s port per GPU"),
        _peak("sms", 108, "1", "NVIDIA A100 architecture white paper, not read again"),
        _reached(
            "nvlink",
            195.5e9,
            "B/s",
            f"{_data('a100_sxm/comm/nccl/2.27.3/nccl_perf.parquet')} (Apache-2.0): all-to-all bus bandwidth, 4 GPUs, 512 MiB per rank",
            direction="one way",
            experiment=ALL_TO_ALL,
        ),
    ),
    "h100-sxm": (
        *_flops(f"{_system('h100_sxm')}; the data sheet's 1979 and 3958 are sparse", bf16=989, fp8=1978),
        _peak("memory", 80 * GIB, "B", f"{_system('h100_sxm')}; five stacks of 16 GiB"),
        _hbm(3350, _system("h100_sxm")),
        _one_way("nvlink", 450, f"{_system('h100_sxm')}; the data sheet says 900 GB/s both ways"),
        _one_way("nic", 50, f"{_system('h100_sxm')}; one 400 Gb/s port per GPU"),
        _peak("sms", 132, "1", HOPPER_SMS),
        _reached(
            "nvlink",
            347.7e9,
            "B/s",
            f"{VIDUR} (MIT): NCCL send and receive between two GPUs, 64 MiB in 193 us",
            direction="one way",
            experiment=PAIR,
        ),
        HOPPER_NIC,
    ),
    "h200-sxm": (
        *_flops(f"{_system('h200_sxm')}; the data sheet's 1979 and 3958 are sparse", bf16=989, fp8=1978),
        _peak("memory", 141 * GIB, "B", f"{_system('h200_sxm')}; sold as 141 GB, of which a runtime sees about 140 GiB"),
        _hbm(4800, _system("h200_sxm")),
        _one_way("nvlink", 450, f"{_system('h200_sxm')}; the data sheet says 900 GB/s both ways"),
        _one_way("nic", 50, f"{_system('h200_sxm')}; one 400 Gb/s port per GPU"),
        _peak("sms", 132, "1", HOPPER_SMS),
        _reached(
            "flops.bf16",
            594.3e12,
            "flop/s",
            f"{_data('h200_sxm/moe/vllm/0.22.0/moe_perf.parquet')} (Apache-2.0): fused MoE kernel, mixtral-8x7b, 2048 tokens, balanced",
            density="dense",
            experiment=KERNEL,
        ),
        _reached(
            "memory_bandwidth",
            4.2626e12,
            "B/s",
            f"{_data('h200_sxm/moe/vllm/0.22.0/moe_perf.parquet')} (Apache-2.0): fused MoE kernel, deepseek-v3 in fp8, 32 balanced tokens "
            "read all 256 experts (11.27 GB) in 2644.9 us",
            experiment=KERNEL,
        ),
        _reached(
            "nvlink",
            311.8e9,
            "B/s",
            f"{_data('h200_sxm/comm/nccl/2.29.2/nccl_perf.parquet')} (Apache-2.0): all-to-all bus bandwidth, 8 GPUs, 512 MiB per rank",
            direction="one way",
            experiment=ALL_TO_ALL,
        ),
        HOPPER_NIC,
    ),
    "h800-sxm": (
        *_flops(f"{INFERSIM} (989/1979); the arithmetic of an H100", bf16=989, fp8=1978),
        _peak("memory", 80 * GIB, "B", f"{INFERSIM} (80 GB); five stacks of 16 GiB"),
        _hbm(3350, f"the memory of an H100 ({_system('h100_sxm')}); {INFERSIM} says 3.43"),
        _one_way("nvlink", 200, f"{INFERSIM}; the data sheet says 400 GB/s both ways"),
        _one_way("nic", 50, f"{DEEPEP}: ConnectX-7, 400 Gb/s per GPU"),
        _peak("sms", 132, "1", HOPPER_SMS),
        _reached("memory", 84_943_110_144, "B", "deepseek-ai/profile-data:train.json: deviceProperties.totalGlobalMem", experiment=DEVICE),
        _reached(
            "nvlink",
            138.25e9,
            "B/s",
            f"{DEEPEP} (MIT): normal combine, EP 8, 4096 tokens; 7/8 of the table's 158 GB/s, which counts what a rank sends to itself",
            direction="one way",
            experiment=ALL_TO_ALL,
        ),
        _reached(
            "nic",
            37.6e9,
            "B/s",
            f"{DEEPEP} (MIT): low-latency combine, EP 16, 128 tokens in 195 us (latency included), 4 remote BF16 copies of 7168 per "
            "token; the table's 74 GB/s counts local copies too",
            direction="one way",
            experiment=SMALL,
        ),
    ),
    "h20": (
        *_flops(INFERSIM, bf16=148, fp8=296),
        _peak("memory", 96 * GIB, "B", f"{INFERSIM} (96 GB); six stacks of 16 GiB"),
        _hbm(4000, INFERSIM),
        _one_way("nvlink", 450, f"{INFERSIM}; the data sheet says 900 GB/s both ways"),
        _one_way("nic", 50, INFERSIM),
        _peak("sms", 78, "1", "NVIDIA H20 product brief, not read again", basis="assumed"),
    ),
    "b200-sxm": (
        *_flops(_system("b200_sxm"), bf16=2250, fp8=4500, fp4=9000),
        _peak("memory", 180 * GIB, "B", f"{_system('b200_sxm')}; NVIDIA DGX B200 user guide: 1,440 GB in 8 GPUs"),
        _hbm(7700, f"{_system('b200_sxm')}; other public figures say 8.0"),
        _one_way("nvlink", 900, f"{_system('b200_sxm')}; the data sheet says 1.8 TB/s both ways"),
        _one_way("nic", 50, "NVIDIA DGX B200 user guide: one ConnectX-7 of 400 Gb/s per GPU; systems with 800 Gb/s cards have 100"),
        _peak("sms", 148, "1", "CUDA device properties of a B200 as published, not read again", basis="assumed"),
    ),
    "gb200-nvl72": (
        *_flops(_system("gb200"), bf16=2500, fp8=5000, fp4=10000),
        _peak("memory", 189_471 * MIB, "B", f"{_system('gb200')}: nvidia-smi"),
        _hbm(8000, _system("gb200")),
        _one_way("nvlink", 900, f"{_system('gb200')}; the data sheet says 1.8 TB/s both ways"),
        _one_way("nic", 50, "NVIDIA DGX GB200 user guide: four 400 Gb/s ConnectX-7 per tray of four GPUs; with 800 Gb/s cards it is 100"),
        _peak("sms", 148, "1", "CUDA device properties of a GB200 as published, not read again", basis="assumed"),
        _reached(
            "nvlink",
            594e9,
            "B/s",
            f"{_data('gb200/comm/trtllm/1.3.0rc10/trtllm_alltoall_perf.parquet')} (Apache-2.0): dispatch of 65536 BF16 tokens of 7168 in "
            "11.07 ms at EP 8, if the balanced routing of the benchmark sends every token to all 8 ranks",
            direction="one way",
            experiment=ALL_TO_ALL,
            basis="fitted",
        ),
    ),
    "gb300-nvl72": (
        *_flops(_system("gb300"), bf16=2500, fp8=5000, fp4=15000),
        _peak("memory", 284_208 * MIB, "B", f"{_system('gb300')}: nvidia-smi"),
        _hbm(8000, _system("gb300")),
        _one_way("nvlink", 900, f"{_system('gb300')}; the data sheet says 1.8 TB/s both ways"),
        _one_way("nic", 100, "NVIDIA DGX GB300 user guide, not read again: four 800 Gb/s ConnectX-8 per tray of four GPUs"),
        _peak("sms", 148, "1", "CUDA device properties of a GB200 as published, carried over to its successor", basis="assumed"),
    ),
    "l40s": (
        *_flops(f"{_system('l40s')}; the data sheet's 733 and 1466 are sparse", bf16=362.05, fp8=733),
        _peak("memory", 46_068 * MIB, "B", f"{_system('l40s')}: nvidia-smi"),
        _hbm(864, _system("l40s")),
        _one_way("nvlink", 32, f"{_system('l40s')}: it has no NVLink; its scale-up link is PCIe 4.0 x16"),
        _one_way("nic", 25, f"{_system('l40s')}; one 200 Gb/s port per GPU"),
        _peak("sms", 142, "1", "NVIDIA L40S data sheet, not read again: 18,176 CUDA cores, 128 in each"),
    ),
    "mi300x": (
        *_flops("AMD Instinct MI300X data sheet, not read again; 661, 2209 and 2600 are quoted elsewhere for fp8", bf16=1307, fp8=2615),
        _peak("memory", 192 * GIB, "B", "AMD Instinct MI300X data sheet, not read again (192 GB): eight stacks of 24 GiB"),
        _hbm(5300, "AMD Instinct MI300X data sheet, not read again"),
        _one_way(
            "nvlink",
            448,
            "AMD Instinct MI300X data sheet, not read again: 7 Infinity Fabric links of 64 GB/s each way, point to point, no switch",
        ),
        _one_way("nic", 50, "Azure ND MI300X v5: eight 400 Gb/s cards for eight GPUs"),
        _peak("sms", 304, "1", "AMD ROCm GPU specifications: 304 compute units"),
        _reached(
            "mesh",
            39.3e9,
            "B/s",
            f"{MORI} (MIT): BF16 combine, EP 4, 4096 tokens: 157.2 GB/s with local copies, so 39.3 on each of three links",
            direction="one way",
            experiment=ALL_TO_ALL,
        ),
    ),
}
"""Every figure of every preset; of one quantity at most one ``peak`` and one ``achievable``."""
