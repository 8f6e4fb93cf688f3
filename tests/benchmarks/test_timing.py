"""What benchmarks share: the name of the processor, what is left out on it, pairs, and the file of results."""

import csv

import pytest
import timing
import torch


@pytest.fixture
def processor(monkeypatch):
    """Stand for a processor with some instruction sets, and under some caps."""

    def become(level: str, *has: str, **caps: str) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "arm64"} | dict.fromkeys(has, True))
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
        monkeypatch.setattr(timing, "CORES", 2)
        for name in timing.CAPS:
            monkeypatch.delenv(name, raising=False)
        for name, value in caps.items():
            monkeypatch.setenv(name, value)

    return become


NEWEST = ("avx512_vnni", "avx512_bf16", "amx_bf16")


@pytest.mark.parametrize(
    ("level", "has", "caps", "name"),
    [
        ("AVX2", (), {}, "avx2-2cores"),
        ("AVX2", ("avx_vnni",), {}, "avx2-vnni-2cores"),
        ("AVX512", ("avx512_vnni",), {}, "avx512-vnni-2cores"),
        ("AVX512", NEWEST[:2], {}, "avx512-bf16-2cores"),
        ("AVX512", NEWEST, {}, "avx512-amx-2cores"),
        ("AVX2", NEWEST, {"ATEN_CPU_CAPABILITY": "avx2"}, "avx2-capped-2cores"),
        ("AVX512", NEWEST, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx512-capped-2cores"),
        ("DEFAULT", (), {}, "arm64-2cores"),
    ],
)
def test_a_processor_is_named_by_its_instruction_sets(processor, level, has, caps, name):
    processor(level, *has, **caps)
    assert timing.processor() == name


def test_bf16_is_timed_where_it_is_native(processor, capsys):
    processor("AVX512", "avx512_bf16")
    timing.introduce()
    assert timing.training_precisions() == ["float32", "bf16"]
    assert timing.inference_precisions() == ["float32", "fp16", "int8", "bf16"]
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("has", "caps", "reason"),
    [((), {}, "has no instructions for it"), (("avx512_bf16",), {"ATEN_CPU_CAPABILITY": "avx2"}, "are capped")],
)
def test_elsewhere_bf16_is_left_out_and_said_to_be(processor, capsys, has, caps, reason):
    processor("AVX2", *has, **caps)
    timing.introduce()
    assert timing.training_precisions() == ["float32"]
    assert timing.inference_precisions() == ["float32", "fp16", "int8"]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "left out" in line] == [lines[1]]
    assert lines[1].startswith("bf16 is left out: ")
    assert lines[1].endswith(reason)


def test_what_fails_is_left_out_in_one_line(capsys):
    with timing.attempt("GPT-2, llama.cpp f16"):
        import no_such_peer  # noqa: F401
    assert capsys.readouterr().out == (
        "GPT-2, llama.cpp f16 is left out: ModuleNotFoundError: No module named 'no_such_peer'\n"
    )


@pytest.mark.parametrize(("seconds", "pairs"), [(60, 8), (0, timing.ENOUGH)])
def test_pairs_end_where_time_is_up_but_not_before_there_are_enough(monkeypatch, seconds, pairs):
    monkeypatch.setattr(timing, "SECONDS", seconds)
    runs: list[str] = []
    ours, theirs = timing.take_turns(lambda: runs.append("ours"), lambda: runs.append("theirs"), 8)
    assert len(ours) == len(theirs) == pairs
    assert runs == ["ours", "theirs"] * (pairs + 1)


def test_results_are_a_file_for_each_processor(processor, tmp_path, capsys):
    aims = {("step", "timm"): (1.0, 1.5)}
    row = timing.compare(aims, "step", "timm", "ms", [10.0, 20.0, 30.0], [20.0, 40.0, 90.0])
    assert "2.00 × as fast (2.00 to 3.00)   aim: 1.0, hope 1.5" in capsys.readouterr().out
    for level in ("AVX2", "AVX512"):
        processor(level, ATEN_CPU_CAPABILITY=level.lower())
        timing.write([row], "speed-vision", (*timing.COLUMNS, "timm_version", "nosuchpeer_version"), tmp_path)
    names = ["speed-vision-avx2-capped-2cores.csv", "speed-vision-avx512-capped-2cores.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with (tmp_path / names[0]).open() as file:
        [read] = csv.DictReader(file)
    assert read["machine"].endswith("ATEN_CPU_CAPABILITY=avx2")
    assert [read[name] for name in ("what", "peer", "ours", "theirs", "ratio")] == ["step", "timm", "20", "40", "2.00"]
    assert read["timm_version"]
    assert read["nosuchpeer_version"] == ""
