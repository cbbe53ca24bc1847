"""Settings: what wins, what is refused and in which words, and run folders that never mix two sets of settings."""
import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from worldmodels.tools import settings
from worldmodels.tools.settings import claim_run_folder, diff, find_ini, load, make_parser, notebook, to_dict


@dataclass(frozen=True)
class Fit:
    """How to train."""
    lr: float = 1e-4
    """learning rate of Adam"""
    steps: int | None = None
    """batches, null for all"""


@dataclass(frozen=True)
class V:
    """The vision model."""
    latent: int = 32
    """width of z"""
    loss: Literal["mse", "bce"] = "mse"
    """squared error or cross-entropy"""
    fit: Fit = Fit()

    def __post_init__(self):
        if self.latent < 1: raise ValueError(f"latent = {self.latent}: must be at least 1")


@dataclass(frozen=True)
class Run:
    """A whole run."""
    out: Path = Path("runs/car")
    """run folder"""
    seeds: tuple[int, int] = (0, 100)
    """first and last seed"""
    vae: V = V()
    tags: list[str] = field(default_factory=list)
    fresh: bool = False
    """start anew"""


@dataclass(frozen=True)
class Needy:
    """A program with an argument that has no default."""
    world: str
    latent: int = 32


@pytest.fixture
def ini(tmp_path):
    path = tmp_path / "settings.ini"
    path.write_text("""
# scales
[quick]
vae.latent = 8          # small
vae.fit.steps = 100
out = runs/100%
[laptop]
vae.latent = 24
seeds = [1, 2]
; a typo each
[typo]
vae.latnt = 3
[Key]
VAE.latent = 3
[type]
vae.latent = many
[choice]
vae.loss = l1
[group]
vae = other.yaml
[range]
vae.latent = 0
[empty]
vae.latent =
[other]
controller.population = 3
""", encoding="utf-8")
    return path


def refused(ini, args, *words, cls=Run, error=ValueError, **kwargs):
    with pytest.raises(error) as e: load(cls, args, ini=ini, **kwargs)
    assert not [w for w in words if w not in str(e.value)], e.value


def test_defaults_need_no_file(tmp_path):
    assert load(Run, [], ini=tmp_path / "none.ini") == Run()


def test_later_section_wins_then_flags(ini):
    both = load(Run, ["--settings", "quick,laptop"], ini=ini)
    assert both == Run(out=Path("runs/100%"), seeds=(1, 2), vae=V(latent=24, fit=Fit(steps=100)))
    assert load(Run, ["--settings=laptop,quick"], ini=ini).vae.latent == 8
    assert load(Run, ["--settings=laptop", "--settings=quick"], ini=ini).vae.latent == 8
    assert load(Run, ["--vae.latent=5", "--settings=quick"], ini=ini).vae.latent == 5
    assert load(Run, ["--vae.latent=5", "--vae.latent", "6"], ini=ini).vae.latent == 6


def test_sections_is_the_default_of_settings(ini):
    assert load(Run, [], sections="quick", ini=ini).vae.latent == 8
    assert load(Run, ["--settings=laptop"], sections="quick", ini=ini) == load(Run, ["--settings=laptop"], ini=ini)


def test_types(ini):
    got = load(Run, ["--vae.fit.lr=1e-3", "--vae.fit.steps=null", "--tags=[a,b]", "--settings=quick"], ini=ini)
    assert got.vae.fit == Fit(1e-3, None) and got.tags == ["a", "b"] and isinstance(got.out, Path)


def test_a_yes_or_no_flag_may_stand_alone():
    assert load(Run, ["--fresh"]).fresh and load(Run, ["--fresh", "--vae.latent=3"]).fresh
    assert not load(Run, ["--fresh", "false"]).fresh and not load(Run, ["--fresh=false"]).fresh


def test_prefix_strips_and_ignores_the_rest(ini):
    assert load(V, ["--settings=quick,other"], prefix="vae", ini=ini) == V(latent=8, fit=Fit(steps=100))
    assert load(Fit, ["--settings=quick"], prefix="vae.fit", ini=ini) == Fit(steps=100)
    assert load(V, ["--settings=quick", "--latent=9"], prefix="vae", ini=ini).latent == 9
    refused(ini, ["--settings=quick", "--vae.latent=9"], "--vae.latent: unknown flag", "--latent", cls=V, prefix="vae")


@pytest.mark.parametrize("section, words", [
    ("typo", ["[typo] vae.latnt = 3: unknown key", "did you mean vae.latent?"]),
    ("Key", ["[Key] VAE.latent = 3: unknown key", "did you mean vae.latent?"]),
    ("type", ["[type] vae.latent = many", "int"]),
    ("choice", ["[choice] vae.loss = l1", "mse", "bce"]),
    ("group", ["[group] vae = other.yaml: unknown key"]),
    ("empty", ["[empty] vae.latent =", "int"]),
    ("other", ["[other] controller.population = 3: unknown key"]),
    ("range", ["latent = 0: must be at least 1"]),
    ("quik", ["no section [quik]", "did you mean quick?", "laptop"]),
    ("DEFAULT", ["no section [DEFAULT]"]),
])
def test_a_bad_section_is_named(ini, section, words):
    refused(ini, [f"--settings=quick,{section}"], *words)


def test_a_bad_key_below_the_prefix_is_named_in_full(ini):
    refused(ini, ["--settings=typo"], "[typo] vae.latnt", "did you mean vae.latent?", cls=V, prefix="vae")


@pytest.mark.parametrize("args, words", [
    (["--vae.latnt=3"], ["--vae.latnt: unknown flag", "did you mean --vae.latent?"]),
    (["--vae.lat=3"], ["--vae.lat: unknown flag", "did you mean --vae.latent?"]),
    (["--vae.latent=many"], ["vae.latent", "many"]),
    (["--vae.latent"], ["vae.latent"]),
    (["--vae=other.yaml"], ["--vae: unknown flag"]),
    (["--fresh=maybe"], ["fresh", "maybe"]),
    (["--seeds=[1,2,3]"], ["seeds"]),
    (["--settings"], ["--settings"]),
    (["quick"], ["quick"]),
])
def test_a_bad_flag_is_named(ini, args, words):
    refused(ini, args, *words)


def test_a_missing_argument_is_named(ini):
    refused(ini, [], "required", "world", cls=Needy)
    refused(ini, ["--settings=type"], "[type] vae.latent = many", cls=Needy, prefix="vae")
    assert load(Needy, ["--world=a"]) == Needy("a")


@pytest.mark.parametrize("text, word", [
    ("[quick]\nvae.latent = 1\nvae.latent = 2\n", "already exists"), ("[quick]\nvae.latent\n", "errors"),
    ("vae.latent = 1\n", "no section headers"),
])
def test_a_broken_file_is_named(ini, text, word):
    ini.write_text(text)
    refused(ini, ["--settings=quick"], str(ini), word)


def test_where_settings_ini_is_found(tmp_path, monkeypatch, ini):
    (tmp_path / "a/b").mkdir(parents=True)
    assert find_ini(tmp_path / "a/b") == ini.resolve()
    ini.unlink()
    monkeypatch.setattr(settings.worldmodels, "__file__", str(tmp_path / "package/__init__.py"))
    with pytest.raises(FileNotFoundError, match="a/b") as e: find_ini(tmp_path / "a/b")
    assert str(tmp_path) in str(e.value)


def test_a_notebook_takes_its_sections_from_the_environment(tmp_path, monkeypatch, ini):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLDMODELS_SETTINGS", raising=False)
    assert notebook(V, "vae").latent == 8
    monkeypatch.setenv("WORLDMODELS_SETTINGS", "quick,laptop")
    assert notebook(V, "vae", "--loss=bce") == V(latent=24, loss="bce", fit=Fit(steps=100))


def test_help_shows_what_stands_under_a_field(capsys):
    with pytest.raises(SystemExit) as e: load(Run, ["--help"])
    out = capsys.readouterr().out
    assert e.value.code == 0 and "width of z (type: int, default: 32)" in out and "--settings" in out


def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(tmp_path):
    program = ("from worldmodels.tools.settings import load\nfrom tests.test_settings import Run\nprint(load(Run).out)")
    def start(*args):
        return subprocess.run([sys.executable, "-c", program, *args], cwd=Path(__file__).parents[1], text=True,
                              capture_output=True)
    bad, good = start("--vae.latnt=3"), start("--out=here")
    assert (bad.returncode, bad.stdout) == (2, "") and good.stdout == "here\n"
    assert bad.stderr == "error: --vae.latnt: unknown flag, did you mean --vae.latent?\n"


def test_diff_names_what_changed():
    run = Run()
    assert diff(to_dict(run), to_dict(run)) == []
    assert diff(to_dict(run), to_dict(replace(run, vae=V(fit=Fit(steps=3)), seeds=(0, 1)))) == ["seeds", "vae.fit.steps"]
    assert diff({"a": 1, "b": {}}, {"c": 1, "b": {}}) == ["a", "c"]


@pytest.fixture
def claimed(tmp_path):
    folder = claim_run_folder(tmp_path / "runs/car", Run())
    (folder / "vae").mkdir()
    (folder / "vae/weights.safetensors").write_text("weights")
    return folder


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != settings.LOCK}


def test_a_run_folder_goes_on_with_the_same_settings(claimed):
    before = content(claimed)
    assert claim_run_folder(claimed, Run()) == claimed and content(claimed) == before
    assert json.loads((claimed / "config.json").read_text()) == to_dict(Run())


def test_a_run_folder_refuses_other_settings_and_keeps_everything(claimed):
    before = content(claimed)
    with pytest.raises(ValueError) as e: claim_run_folder(claimed, Run(seeds=(0, 9), vae=V(fit=Fit(lr=1.0))))
    text = str(e.value)
    assert "vae.fit.lr: 0.0001 -> 1.0" in text and "seeds: [0, 100] -> [0, 9]" in text and "--fresh" in text
    assert "latent" not in text and content(claimed) == before


def test_ignored_keys_may_differ(claimed):
    claim_run_folder(claimed, Run(fresh=True), ignore=("fresh",))
    with pytest.raises(ValueError, match="fresh: False -> True"): claim_run_folder(claimed, Run(fresh=True))


def test_fresh_starts_anew(claimed):
    claim_run_folder(claimed, Run(seeds=(0, 9)), fresh=True)
    assert list(content(claimed)) == [Path("config.json")]
    claim_run_folder(claimed, Run(seeds=(0, 9)))


def elsewhere(folder):
    """A process that locks a folder until it is killed."""
    program = "import sys; from worldmodels.tools.settings import lock_run_folder; lock_run_folder(sys.argv[1]); print('mine', flush=True); sys.stdin.read()"
    return subprocess.Popen([sys.executable, "-c", program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_this_process_claimed_is_refused_to_another(claimed):
    with elsewhere(claimed) as other: assert "another process is at work in" in other.communicate()[1]


def test_what_another_process_claimed_is_refused_until_it_is_killed(tmp_path):
    with elsewhere(tmp_path) as other:
        assert other.stdout.readline() == "mine\n"
        for fresh in (False, True):
            with pytest.raises(ValueError, match="another process is at work in"): claim_run_folder(tmp_path, Run(), fresh)
        assert not content(tmp_path)
        other.kill()
    assert claim_run_folder(tmp_path, Run()) == tmp_path and content(tmp_path)


def test_a_removal_that_was_killed_is_finished(claimed, monkeypatch):
    def killed(path): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(settings.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt): claim_run_folder(claimed, Run(), fresh=True)
    assert (claimed / "vae/weights.safetensors").exists()
    claim_run_folder(claimed, Run())  # not fresh, and the same settings: yet never from half a folder
    assert list(content(claimed)) == [Path("config.json")]


def test_a_kill_while_claiming_leaves_the_folder_free(tmp_path):
    (tmp_path / "config.json.tmp").write_text('{"half')
    assert content(claim_run_folder(tmp_path, Run())) and not (tmp_path / "config.json.tmp").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_no_run_folder_is_left_alone(tmp_path, fresh):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not a run folder"): claim_run_folder(tmp_path, Run(), fresh=fresh)
    (tmp_path / "config.json").write_text("{half")
    with pytest.raises(ValueError, match="cannot be read"): claim_run_folder(tmp_path, Run(), fresh=fresh)
    with pytest.raises(ValueError, match="not a run folder"): claim_run_folder(tmp_path / "thesis.tex", Run())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_commands_own_section_comes_after_the_shared_one_and_for_it_alone(ini):
    ini.write_text(ini.read_text() + "\n[quick:dream]\nvae.latent = 9\n")
    assert load(Run, ["--settings", "quick"], ini=ini, command="dream").vae == V(latent=9, fit=Fit(steps=100))
    assert load(Run, ["--settings", "quick"], ini=ini, command="doom").vae.latent == load(Run, ["--settings", "quick"], ini=ini).vae.latent == 8
    assert load(Run, ["--settings", "quick", "--vae.latent", "5"], ini=ini, command="dream").vae.latent == 5
    with pytest.raises(ValueError, match=r"latent"):
        ini.write_text(ini.read_text().replace("vae.latent = 9", "vae.latent = 0"))
        load(Run, ["--settings", "quick"], ini=ini, command="dream")
    with pytest.raises(ValueError) as refusal: load(Run, ["--settings", "quikc"], ini=ini, command="dream")
    assert "quick:dream" not in str(refusal.value)
