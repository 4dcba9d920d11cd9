"""Rehearsals: whatever the stages after a search would refuse, a dry run refuses, and leaves nothing behind."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bundles import make_dense, make_tokenizer, to_text
from conftest import Run
from nursery import Nursery
from tiers import THOROUGH, thin

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import ExactnessError, ExportCircuitError, InputError, UsageError
from exporter.graph import export as onnx_export
from exporter.job import build, gate, rehearsal, timing
from exporter.job import run as pipeline
from exporter.job.build import build_file
from exporter.job.options import Job, choose_ablation
from exporter.job.plan import prepare
from exporter.job.run import check_job, run_job
from exporter.loading import load
from exporter.loading.sources.tokenizer import load_tokenizer
from exporter.outputs import bundle as outputs
from exporter.outputs.manifest import Manifest
from exporter.outputs.targets import TARGETS, BundleTarget
from exporter.tasks import SplitSizes, acronym
from exporter.tasks.tokenizer import encode_text

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def _briefly() -> Iterator[None]:
    """Hundreds of tiny jobs: few prompts to measure with."""
    batches, timing.LATENCY_BATCHES = timing.LATENCY_BATCHES, (1, 3)
    yield
    timing.LATENCY_BATCHES = batches


def make_lines(shape: str) -> list[dict[str, Any]]:
    """24 prompts of random words for each set: of one length or several, with answers of one token or several."""
    draw = random.Random(0)
    lines = []
    for place in range(96):
        length = 3 + place % 4 if "padded" in shape else 5
        words = [draw.randrange(1, 37) for _ in range(length)]
        line: dict[str, Any] = {"prompt": to_text(words)}
        if "steps" in shape:
            line["answer"] = " " + to_text([draw.randrange(1, 37) for _ in range(1 + place % 3)])
        elif "choices" in shape:
            line |= {"answer": f" w{1 + place % 2}", "choices": [" w1", " w2"]}
        else:
            line["answer"] = f" w{1 + place % 7}"
        if "split" in shape:
            line["split"] = ("patching", "selection", "test", "ood:other")[place % 4]
        lines.append(line)
    return lines


SHAPES = ("plain", "padded", "steps", "padded steps", "choices", "padded choices", "padded split", "steps split")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer of its own, a circuit in it, and a file of each shape."""
    folder = tmp_path_factory.mktemp("inputs")
    dense = make_dense()
    dense.hf.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    for shape in SHAPES:
        text = "".join(json.dumps(line) + "\n" for line in make_lines(shape))
        (folder / f"{shape.replace(' ', '_')}.jsonl").write_text(text)
    for mean, align in (("position", "left"), ("position", "right"), ("global", "left")):
        circuit = Circuit(
            heads=(Head(0, 1), Head(2, 0), Head(2, 3)), mlps=(1,), ablation=Ablation(by=mean, align=align)
        )
        circuit.save(folder / f"{mean}-{align}.json")
    Circuit(heads=(Head(1, 1),), mlps=(0, 2), ablation="zero").save(folder / "zero.json")
    Circuit(heads=(), mlps=()).save(folder / "empty.json")
    Circuit(heads=tuple(Head(i, j) for i in range(3) for j in range(4)), mlps=(0, 1, 2)).save(folder / "all.json")
    return folder


def make_job(folder: Path, place: Path, *, shape: str = "plain", outputs: str = "out", **options: Any) -> Job:
    names = {"out": {"out": place / "m.onnx"}, "bundle": {"out": None, "bundle": place / "b"}}
    names["both"] = names["out"] | {"bundle": place / "b"}
    searched = options.get("circuit") is None
    chosen = choose_ablation(*(options.pop(name, None) for name in ("ablation", "mean", "align")), searched=searched)
    given = {
        "ablation": chosen,
        "task": str(folder / f"{shape.replace(' ', '_')}.jsonl"),
        "model": str(folder / "model"),
        "force": True,
    }
    return Job(**(given | {"sizes": SplitSizes(20, 20, 20)} | names[outputs] | options))


def end(act: Callable[[], object]) -> tuple[type[ExportCircuitError] | None, str]:
    """How something ends: the type of what is raised, and its text."""
    try:
        act()
    except ExportCircuitError as error:
        return type(error), str(error)
    return None, ""


CORE = {"shape": SHAPES, "with_past": (False, True), "logits": ("answers", "all", "last"), "vocab": ("full", "task")}
REST: dict[str, tuple[Any, ...]] = {
    "outputs": ("out", "bundle", "both"),
    "precision": ("fp32", "int8", "fp16"),
    "scales": (None, "tensor", "token"),
    "weights": ("uint8", "int7"),
    "target": ("portable", "ort"),
    "external_data": (False, True),
    "guard": (False, True),
    "opset": (20, 17),
    "targets": ((), ("optimum",)),
    "mlps": (True, False),
    "ablation": (None, "mean", "zero"),
    "mean": (None, "position", "global"),
    "align": (None, "left", "right"),
    "circuit": (None, "position-left", "position-right", "global-left", "zero", "empty", "all"),
    "dtype": ("float32", "float32", "bfloat16"),
}
ALONE = ("mlps", "ablation", "mean", "align", "dtype")  # that do not go with a circuit


def draw_flags(core: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """All flags: those given, and others that are drawn, now and then such as do not go together."""
    flags = core | {name: draw.choice(values) for name, values in REST.items()}
    if draw.random() < 0.9:
        for name in ALONE if flags["circuit"] else ():
            del flags[name]
        if flags["precision"] != "int8":
            del flags["scales"], flags["weights"]
        if flags["outputs"] == "out":
            del flags["targets"]
        if flags["outputs"] == "both":
            del flags["external_data"]
        if flags.get("ablation") == "zero" or flags.get("mean") == "global":
            flags.pop("align", None)
    return flags


def compare(folder: Path, out: Path, flags: dict[str, Any]) -> type[ExportCircuitError] | None:
    """Do the job, dry and in earnest; both end alike, but for what numbers alone decide. Returns the job's end."""
    out.mkdir()
    if flags["circuit"] is not None:
        flags = flags | {"circuit": folder / f"{flags['circuit']}.json"}
    preset, alpha = (None, None) if flags["circuit"] else ("paper", 0.05)
    dry = end(lambda: check_job(make_job(folder, out, alpha=None, preset=preset, **flags)))
    assert list(out.iterdir()) == []
    real = end(lambda: run_job(make_job(folder, out, alpha=alpha, **flags)))
    if real[0] is ExactnessError:
        assert dry[0] is None
    else:
        assert dry == real, flags
    assert (list(out.iterdir()) == []) == (real[0] is not None)
    return real[0]


def draw_all(seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    cores = [dict(zip(CORE, values, strict=True)) for values in itertools.product(*CORE.values())]
    return [draw_flags(core, draw) for core in cores]


def check_drawn(drawn: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    ends = [compare(folder, tmp_path / str(number), flags) for number, flags in enumerate(drawn)]
    fine = [found for found in ends if found in (None, ExactnessError)]  # random weights answer otherwise in int8
    assert len(ends) / 3 <= len(fine) < len(ends)
    assert {*ends} <= {None, InputError, UsageError, ExactnessError}


@pytest.mark.slow
def test_a_dry_run_ends_as_the_job_does(folder: Path, tmp_path: Path) -> None:
    """Each of the flags that shape a graph, with each shape of prompts; the other flags are drawn."""
    check_drawn([flags for place, flags in enumerate(draw_all(0)) if place % 16 < 4], folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_dry_run_ends_as_the_job_does_with_all_flags(seed: int, folder: Path, tmp_path: Path) -> None:
    """All of the flags that shape a graph times all shapes of prompts; the other flags are drawn."""
    check_drawn(draw_all(seed), folder, tmp_path)


def forbid_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_args: object, **_options: object) -> Circuit:
        raise AssertionError("the search has begun")

    monkeypatch.setattr(pipeline, "search_surgery", search)


def refuse_both(job: Job, message: str, monkeypatch: pytest.MonkeyPatch, kind: type[Exception] = InputError) -> None:
    """The dry run and the job are refused with the same words, before a search."""
    forbid_search(monkeypatch)
    with pytest.raises(kind, match=message) as dry:
        check_job(job)
    with pytest.raises(kind, match=message) as real:
        run_job(job)
    assert str(dry.value) == str(real.value)


STAGES = [
    *[(build, name) for name in ("plan_surgery", "slice_model", "fold_model", "export_onnx", "summarise_values")],
    *[(gate, name) for name in ("verify_surgery", "open_session", "evaluate_file")],
    *[(timing, "time_call"), (build, "hash_file")],
    *[(outputs, name) for name in ("write_tokenizer", "render_card", "hash_file", "BundleShape")],
]


@pytest.mark.parametrize(("module", "name"), STAGES)
def test_each_stage_is_rehearsed(
    module: ModuleType, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of them refuses, it does so before the search, and in a dry run."""

    def refuse(*_args: object, **_options: object) -> None:
        raise InputError("this stage refuses")

    monkeypatch.setattr(module, name, refuse)
    refuse_both(make_job(folder, tmp_path, outputs="bundle", alpha=0.05), "this stage refuses", monkeypatch)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", thin(TARGETS, ("optimum", "genai")))
def test_each_target_is_rehearsed(target: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_shape: object) -> dict[str, str]:
        raise InputError("this target fails")

    job = replace(make_job(folder, tmp_path, outputs="bundle", alpha=0.05), targets=(target,))
    monkeypatch.setitem(TARGETS, target, BundleTarget(fail))
    refuse_both(job, "this target fails", monkeypatch)
    monkeypatch.setitem(TARGETS, target, BundleTarget(lambda _: {}, refuse=lambda _: "needs another model"))
    refuse_both(job, f"^--for {target} needs another model$", monkeypatch)


def test_prompts_of_several_lengths_are_timed_with_their_mask(folder: Path, tmp_path: Path) -> None:
    """Padding that is given as text is a token that a graph of the task's tokens does not know."""
    circuit = folder / "position-left.json"
    for shape in SHAPES if THOROUGH else ("plain", "padded", "padded steps"):
        job = make_job(folder, tmp_path, shape=shape, vocab="task", logits="last", circuit=circuit)
        manifest = run_job(job)
        assert manifest is not None and [found.batch for found in manifest.latency] == [1, 3]


def test_a_tokenizer_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Words:
        """A tokenizer without a tokenizer.json."""

        def __init__(self, real: Any) -> None:
            self.encode, self.decode, self.eos_token_id = real.encode, real.decode, 0

    loaded = prepare(make_job(folder, tmp_path)).model
    plain = replace(loaded, tokenizer=Words(loaded.tokenizer))
    monkeypatch.setattr("exporter.job.plan.load_model", lambda *_args, **_options: plain)
    run_job(make_job(folder, tmp_path, alpha=0.05))
    refuse_both(make_job(folder, tmp_path, outputs="bundle", alpha=0.05), "no tokenizer.json", monkeypatch)
    refuse_both(make_job(folder, tmp_path, outputs="both", alpha=0.05), "no tokenizer.json", monkeypatch)


def test_a_dense_model_of_more_than_one_file_is_timed_all_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights lie beside its graph then; the circuit's own file is small."""
    dense = prepare(make_job(folder, tmp_path)).model.dense
    monkeypatch.setattr(onnx_export, "_MAX_BYTES", onnx_export.count_bytes(dense) - 1)
    manifest = run_job(make_job(folder, tmp_path, circuit=folder / "position-left.json"))
    assert manifest is not None and manifest.dense_onnx_bytes > onnx_export.count_bytes(dense)


def test_embeddings_that_fill_more_than_one_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = prepare(make_job(folder, tmp_path)).model.dense
    monkeypatch.setattr(onnx_export, "_MAX_BYTES", dense.W_E.nbytes - 1)
    refuse_both(make_job(folder, tmp_path, alpha=0.05), "one ONNX file holds 2 GB; give --external-data", monkeypatch)
    monkeypatch.undo()
    kept = dense.W_E.nbytes + sum(t.nbytes for s in dense.sublayers() if s.kind == "mlp" for t in s.parameters())
    monkeypatch.setattr(onnx_export, "_MAX_BYTES", kept - 1)
    refuse_both(make_job(folder, tmp_path, alpha=0.05, mlps=False), "one ONNX file holds 2 GB", monkeypatch)


def test_a_rehearsal_that_would_not_fit_leaves_mlps_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the search may well remove is no reason to refuse."""
    plan = prepare(make_job(folder, tmp_path))
    assert rehearsal.pick_circuit(plan).mlps == (0, 2)
    assert rehearsal.pick_circuit(plan).heads == (Head(0, 0), Head(2, 2))
    sizes = [sum(t.nbytes for t in s.parameters()) for s in plan.model.dense.sublayers() if s.kind == "mlp"]
    monkeypatch.setattr(onnx_export, "_MAX_BYTES", plan.model.dense.W_E.nbytes + sizes[0])
    assert rehearsal.pick_circuit(plan).mlps == (0,)
    monkeypatch.setattr(onnx_export, "_MAX_BYTES", plan.model.dense.W_E.nbytes)
    assert rehearsal.pick_circuit(plan).mlps == ()


def test_disks_without_room(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rehearsal.shutil.disk_usage

    def lack(where: Path) -> Callable[[Path], Any]:
        return lambda path: real(path)._replace(free=1000) if Path(path) == where else real(path)

    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lack(tmp_path))
    refuse_both(make_job(folder, tmp_path, alpha=0.05), r"no space left to write .*m\.onnx", monkeypatch)
    refuse_both(make_job(folder, tmp_path, outputs="bundle", alpha=0.05), "no space left to write", monkeypatch)
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lack(Path(rehearsal.tempfile.gettempdir())))
    refuse_both(make_job(folder, tmp_path, alpha=0.05), "set TMPDIR to another folder", monkeypatch)


def test_outputs_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.json").write_text("mine")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    kinds = {"out": "exists; give --force", "bundle": "exists and is no bundle", "both": "exists"}
    for kind, message in kinds.items():
        refuse_both(make_job(folder, tmp_path, outputs=kind, force=False, alpha=0.05), message, monkeypatch)
    refuse_both(make_job(folder, tmp_path / "none", alpha=0.05), "no folder", monkeypatch)
    refuse_both(make_job(folder, tmp_path, out=tmp_path / "m.json" / "m.onnx"), "no folder", monkeypatch)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "m.json", "mine"]


@pytest.mark.parametrize(
    ("out", "bundle", "message"),
    [
        ("m.onnx", "m.onnx", "the name of a file of --out"),
        ("m.onnx", "m.json", "the name of a file of --out"),
        ("m.onnx", "m.onnx.journal", "the name of a file of --out"),
        ("b/m.onnx", "b", "in the folder of --bundle"),
        ("b/c/m.onnx", "b", "in the folder of --bundle"),
    ],
)
def test_outputs_in_each_others_way(out: str, bundle: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Job(task="acronym", out=Path(out), bundle=Path(bundle))


@pytest.mark.parametrize("name", ["m.ONNX", "m.Onnx", "m.oNNx"])
def test_the_suffix_is_in_small_letters(name: str) -> None:
    with pytest.raises(UsageError, match=r"ends in \.onnx in small letters"):
        Job(task="acronym", out=Path(name))


def test_searches_that_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(folder, tmp_path, alpha=0.05)
    with pytest.raises(InputError, match="raise --memory-limit") as dry:
        check_job(replace(job, memory_limit=1000))
    with pytest.raises(InputError, match="raise --memory-limit") as real:
        run_job(replace(job, memory_limit=1000))
    assert str(dry.value) == str(real.value)
    (tmp_path / "m.onnx.journal").write_text("not a journal\n")
    refuse_both(replace(job, resume=True), "is no journal of a search", monkeypatch)
    assert (tmp_path / "m.onnx.journal").read_text() == "not a journal\n"


def test_more_processes_than_prompts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "30", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="20 selection prompts are too few for 30 processes"):
        check_job(make_job(folder, tmp_path))


def test_a_rehearsal_takes_few_prompts_as_wide_as_all(folder: Path, tmp_path: Path) -> None:
    for shape in SHAPES:
        data = prepare(make_job(folder, tmp_path, shape=shape)).data
        few = rehearsal._take_few(data)
        for name in ("patching", "selection", "test"):
            all_prompts, some = getattr(data, name), getattr(few, name)
            assert len(some) <= 4 and (some.length, some.n_steps) == (all_prompts.length, all_prompts.n_steps)
            assert (some.mask is None) == (all_prompts.mask is None)
            if some.mask is not None:
                lengths = all_prompts.mask.sum(dim=1)
                assert {int(lengths.min()), int(lengths.max())} <= set(some.mask.sum(dim=1).tolist())
        assert set(few.ood) == set(data.ood)


def test_nothing_is_left_in_the_folder_for_temporary_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(rehearsal.tempfile, "tempdir", str(tmp_path / "scratch"))
    check_job(make_job(folder, tmp_path, outputs="both", precision="int8"))
    assert [path.name for path in tmp_path.rglob("*")] == ["scratch"]
    monkeypatch.setattr(build, "summarise_values", lambda *_args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check_job(make_job(folder, tmp_path, outputs="both", precision="int8"))
    assert [path.name for path in tmp_path.rglob("*")] == ["scratch"]


STRUCK = """
import signal, time
from exporter.job import run as pipeline
rehearse = pipeline.rehearse
def interrupted(*arguments):
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, {seconds})
    rehearse(*arguments)
    while True:
        time.sleep(0.01)
pipeline.rehearse = interrupted
"""


def test_ctrl_c_in_a_rehearsal_leaves_nothing(folder: Path, tmp_path: Path, nursery: Nursery) -> None:
    (tmp_path / "scratch").mkdir()
    job = ["--task", folder / "padded.jsonl", "--model", folder / "model", "--bundle", tmp_path / "b", "--force"]
    job += ["--with-past", "--quiet", "--preset", "paper"]
    for place in range(12):  # to half a second: from its beginning to after its end
        first = STRUCK.format(seconds=0.003 * 1.6**place)
        found = nursery.run(job, first=first, TMPDIR=str(tmp_path / "scratch"))
        assert found == (128 + signal.SIGINT, "", "export-circuit: interrupted\n")
    left = {path.name for path in tmp_path.rglob("*")}
    assert left - {".ses"} == {"scratch"}  # which some builds of ONNX Runtime write


def test_a_dry_run_says_that_it_rehearsed(folder: Path, tmp_path: Path, run: Run) -> None:
    job = ("--task", folder / "padded.jsonl", "--model", folder / "model", "--out", tmp_path / "m.onnx", "--force")
    assert "all stages were rehearsed on a few prompts" in run.succeeds(*job, "--dry-run", "--alpha", "0.05")
    assert json.loads(run.succeeds(*job, "--dry-run", "--json"))["prompts"]["test"] == 48
    assert run.succeeds(*job[:4], "--dry-run", "--force")  # with nothing to write
    assert not list(tmp_path.iterdir())


def test_the_manifest_has_the_rehearsals_seconds(folder: Path, tmp_path: Path) -> None:
    run_job(make_job(folder, tmp_path, alpha=0.05))
    assert Manifest.load(tmp_path / "m.json").seconds["rehearse"] > 0
    run_job(make_job(folder, tmp_path, circuit=folder / "empty.json"))
    assert "rehearse" not in Manifest.load(tmp_path / "m.json").seconds  # nothing comes before the stages


@pytest.mark.slow
def test_the_bundled_model_rehearses_soon(bundled: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this thread's own time, and by what preparing takes: neither a busy nor a slow machine counts."""
    monkeypatch.setattr(load, "load_tokenizer", load_tokenizer)  # which preparing takes in all but the tests
    monkeypatch.setattr(acronym, "encode_text", encode_text)
    job = Job(task="acronym", out=tmp_path / "m.onnx", model="bundled", sizes=SplitSizes(20, 20, 20))
    rehearsal.rehearse(prepare(job), build_file)  # what is imported late
    start = time.thread_time()
    plan = prepare(job)
    prepared = time.thread_time()
    rehearsal.rehearse(plan, build_file)
    assert time.thread_time() - prepared < 7 * (prepared - start)


def test_zero_ablation_comes_with_its_note(folder: Path, run: Run) -> None:
    job = ("--task", folder / "plain.jsonl", "--model", folder / "model", "--dry-run", "--force")
    code, _, err = run.all(*job, "--ablation", "zero")
    assert code == 0 and "compare with fold_value_biases=False" in err
    assert "fold_value_biases" not in run.all(*job)[2]
