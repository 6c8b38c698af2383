"""Rows that nobody can be asked about are left out one by one, with their reason, and cost the others nothing."""

import numpy as np
import pytest

from moesim.desk.measured_tables import parse_csv
from moesim.desk.presets.profiles import shipped_profiles
from moesim.models.fitted.rows import labels, numbers
from moesim.study.sane_rows import MOST_OF_A_GROUP, sane
from moesim.study.validate import validate
from moesim.study.validation.fitted_table import alpha_beta

NCCL = "system,num_gpus,bytes_per_rank,time_us"
FFN = "system,kernel_source,moe_dtype,hidden_size,inter_size,topk,num_experts,moe_ep_size,distribution,num_tokens,time_us"
MORI = "gpu,kernel,ep,op,dtype,hidden_size,tokens_per_rank,quant,latency_us"


def scored(name, head, lines):
    """Return how many rows are predicted, the reasons with their rows, and the only cases."""
    found = validate([parse_csv("\n".join((head, *lines)) + "\n", name)], shipped_profiles())
    reasons = {}
    for score in found.scores:
        for item in score.unpredicted:
            reasons[item.reason] = reasons.get(item.reason, 0) + item.rows
    return sum(score.errors.n for score in found.scores), reasons, found.cases[0] if found.cases else None


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("num_experts", 0.0, "column num_experts: 0 is not above 0"),
        ("num_experts", 2.5, "column num_experts: 2.5 is no whole number"),
        ("num_experts", 1e14, f"column num_experts: 1e+14 is larger than {MOST_OF_A_GROUP}"),
        ("num_experts", np.inf, f"column num_experts: inf is larger than {MOST_OF_A_GROUP}"),
        ("num_experts", -1.0, "column num_experts: -1 is negative"),
        ("num_experts", np.nan, "column num_experts is empty"),
        ("num_experts", 4.0, "column topk: a token cannot make 8 choices of 4 experts"),
        ("num_tokens", 0.0, "column num_tokens: 0 is not above 0"),
        ("time_us", -2.0, "column time_us: -2 is negative"),
    ],
)
def test_each_impossible_size_has_its_reason(column, value, reason):
    rows = {"topk": np.array([8.0, 8.0]), "num_experts": np.array([64.0, 64.0]), "num_tokens": np.array([4.0, 4.0]), "time_us": np.ones(2)}
    rows[column][1] = value
    good, left = sane(tuple(rows), rows)
    assert good.tolist() == [True, False]
    assert [(item.rows, item.reason) for item in left] == [(1, reason)]


def test_what_may_be_empty_and_words():
    rows = {"system": np.array(["a", ""]), "time_us": np.array([np.nan, 1.0]), "comm_sms": np.array([np.nan, np.nan])}
    good, left = sane(tuple(rows), rows)
    assert good.tolist() == [True, False]  # a time that is missing is told later, as not measured
    assert [item.reason for item in left] == ["column system is empty"]


def test_one_empty_cell_costs_one_row_and_not_the_table():
    lines = [f"h200_sxm,8,{2**power},{8 + 2**power / 3e5}" for power in range(10, 28)]
    n, reasons, _ = scored("nccl_alltoall_intranode.csv", NCCL, [*lines, "h200_sxm,8,,9", "h200_sxm,,1024,9", "h200_sxm,8,1024,0"])
    assert n == len(lines)
    assert reasons == {"column bytes_per_rank is empty": 1, "column num_gpus is empty": 1, "the measured value is not above 0": 1}


def test_more_choices_than_experts_end_in_a_reason_and_not_in_a_loop():
    shape = "h200_sxm,vllm_fused_moe,bfloat16,2048,768"
    lines = [f"{shape},8,128,8,power_law_1.2,1024,300", f"{shape},1000,128,8,power_law_1.2,1024,300"]
    n, reasons, _ = scored("moe_ffn_h200.csv", FFN, lines)
    assert n == 1
    assert reasons == {"column topk: a token cannot make 1000 choices of 128 experts": 1}


def test_memory_that_is_not_there_costs_a_table_and_not_the_others():
    class Greedy:
        name, files, columns, quantity = "greedy", ("greedy*.csv",), ("size", "time_us"), "time"

        def seconds(self, rows):
            return numbers(rows, "time_us") / 1e6

        def regime(self, rows):
            return np.full(len(rows["size"]), "all")

        group = regime

        def baseline(self, rows):
            return "", np.full(len(rows["size"]), np.nan)

        def predict(self, rows, profiles):
            raise MemoryError("no room")

        def fit(self, rows):
            return {}

    found = validate([parse_csv("size,time_us\n1,1\n", "greedy.csv")], {}, kinds=[Greedy()])
    assert "no room" in found.scores[0].unpredicted[0].reason


def test_a_table_of_which_no_row_is_sane_says_why():
    n, reasons, _ = scored("nccl_alltoall_intranode.csv", NCCL, ["h200_sxm,0,1024,9", "h200_sxm,8,-1,9"])
    assert n == 0
    (reason,) = reasons
    assert "num_gpus: 0 is not above 0" in reason
    assert "bytes_per_rank: -1 is negative" in reason


def test_a_column_without_entries_holds_no_text():
    assert np.isnan(numbers({"a": np.array(["", ""])}, "a")).all()


def test_sizes_are_named_alike_as_whole_and_as_broken_numbers():
    whole, broken = np.array([1048576, 1048577]), np.array([1048576.0, 1048577.0])
    assert labels({"n": whole}, ("n",)).tolist() == labels({"n": broken}, ("n",)).tolist() == ["1048576", "1048577"]


def test_a_line_through_rows_of_which_some_were_not_measured():
    x = np.array([1.0, 2.0, 4.0, 8.0, np.nan, 3.0])
    y = np.array([5.0, 7.0, 11.0, 19.0, 4.0, 0.0])  # 3 + 2 x where both are known
    found = alpha_beta(x, y, np.array(["a"] * 6))
    assert found[:4] == pytest.approx(y[:4])
    assert np.isnan(found[4:]).all()


def test_amd_gpus_by_any_letters_and_those_that_nobody_measured():
    tail = "bf16,7168,512,none,200"
    lines = [f"{gpu},IntraNode,4,dispatch,{tail}" for gpu in ("mi300x", "MI308X", "mi325x", "mi399x")]
    lines.append("mi300x,IntraNode,4,dispatch,fp3,7168,512,none,200")
    n, reasons, cases = scored("mori_dispatch_combine_amd.csv", MORI, lines)
    assert n == 3
    assert cases.prediction.basis[:3].tolist() == ["fitted", "fitted", "datasheet"]
    assert any("'mi399x'" in reason and "link" in reason for reason in reasons)
    assert any("'fp3'" in reason for reason in reasons)


def test_published_rows_of_other_fabrics_are_not_predicted_as_connectx():
    head = "system,library,kernel,ep,op,tokens_per_rank,dtype,latency_us,bandwidth_GBps,bandwidth_basis,comm_sms"
    row = "deepep-v1,low_latency,16,dispatch,128,fp8,150,,,"
    n, reasons, _ = scored("readme_tables_dispatch_combine.csv", head, [f"{name},{row}" for name in ("H800+CX7_400G", "H200+EFA", "GB200")])
    assert n == 1
    assert sum("EFA" in reason for reason in reasons) == 1
    assert sum("rack" in reason for reason in reasons) == 1
