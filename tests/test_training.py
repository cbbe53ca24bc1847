"""The training loop: a kill, a loss that is not finite, a record without gaps, a function that looks on."""
import pytest
import torch

from worldmodels.tools import training
from worldmodels.tools.training import FitSettings, fit, has_bf16, load_checkpoint, read_lines, step_seed
from worldmodels.tools.world import load_tensors

SETTINGS = FitSettings(steps=20, lr=0.1, checkpoint_every=5, bf16=False)


def line():
    torch.manual_seed(0)
    return torch.nn.Linear(1, 1)


def batches(seed, step):
    while True:
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step_seed(seed, step)))
        yield x, 3 * x
        step += 1


def loss(model, batch):
    x, y = batch
    return (model(x + 0.1 * torch.randn_like(x)) - y).pow(2).mean(), {}


def stopping(at):
    def stream(seed, step):
        for k, batch in enumerate(batches(seed, step), step):
            if k == at: raise KeyboardInterrupt
            yield batch
    return stream


@pytest.mark.parametrize("at", [0, 4, 5, 6, 17])
def test_stopped_anywhere_it_ends_with_the_same_bits(tmp_path, at):
    whole = fit(line(), batches, loss, SETTINGS)
    with pytest.raises(KeyboardInterrupt): fit(line(), stopping(at), loss, SETTINGS, tmp_path)
    resumed = fit(line(), batches, loss, SETTINGS, tmp_path, log_every=1)
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
    steps = [m["step"] for m in read_lines(tmp_path / "metrics.jsonl")]
    assert steps == list(range(at // 5 * 5 + 1, 21))


def test_a_finished_run_is_not_trained_again(tmp_path):
    fit(line(), batches, loss, SETTINGS, tmp_path)
    again = fit(line(), stopping(0), loss, SETTINGS, tmp_path)  # would raise at its first batch
    assert not again.training


def test_a_loss_that_is_not_finite_names_step_and_checkpoint(tmp_path):
    def breaks(model, batch):
        value, numbers = loss(model, batch)
        return value * (float("nan") if batch[0] is marked else 1), numbers

    marked = next(batches(0, 7))[0]
    def stream(seed, step):
        for k, batch in enumerate(batches(seed, step), step): yield (marked, marked) if k == 7 else batch

    with pytest.raises(FloatingPointError, match="step 7.*model.checkpoint.safetensors"):
        fit(line(), stream, breaks, SETTINGS, tmp_path)
    tensors, metadata = load_tensors(tmp_path / "model.checkpoint.safetensors")
    assert metadata["step"] == 5 and all(t.isfinite().all() for t in tensors.values())


def test_weights_that_are_not_finite_do_not_replace_a_good_checkpoint(tmp_path):
    model = fit(line(), batches, loss, SETTINGS, tmp_path)
    path, optimizer = tmp_path / "model.checkpoint.safetensors", torch.optim.Adam(model.parameters())
    before = path.read_bytes()
    model.weight.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="weight"):
        training.save_checkpoint(path, model, optimizer, 21)
    assert path.read_bytes() == before
    assert load_checkpoint(path, line(), torch.optim.Adam(line().parameters())) == 20


def test_the_checkpoint_of_another_model_is_refused_and_kept(tmp_path):
    fit(line(), batches, loss, SETTINGS, tmp_path)
    path = tmp_path / "model.checkpoint.safetensors"
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"weight for one is \(1, 1\) there and \(1, 2\) in this Linear"):
        fit(torch.nn.Linear(2, 1), batches, loss, SETTINGS, tmp_path)
    with pytest.raises(ValueError, match="missing"):
        fit(torch.nn.Linear(1, 1, bias=False), batches, loss, SETTINGS, tmp_path)
    assert path.read_bytes() == before


def test_a_folder_is_made_where_there_is_none(tmp_path):
    fit(line(), batches, loss, SETTINGS, tmp_path / "runs" / "new")
    assert (tmp_path / "runs" / "new" / "model.checkpoint.safetensors").is_file()


@pytest.mark.parametrize("keeps_a_record", [True, False])
def test_every_step_is_shown_with_the_numbers_that_are_logged(tmp_path, keeps_a_record):
    calls = []
    folder = tmp_path if keeps_a_record else None
    watched = fit(line(), batches, loss, SETTINGS, folder, log_every=8,
                  on_step=lambda step, metrics: calls.append((step, metrics)))
    assert [step for step, _ in calls] == list(range(1, 21))
    logged = {step: metrics for step, metrics in calls if metrics}
    assert list(logged) == [8, 16, 20] and all(type(m["loss"]) is float for m in logged.values())
    if keeps_a_record:
        assert [(m["step"], m["loss"]) for m in read_lines(tmp_path / "metrics.jsonl")] == [
            (step, metrics["loss"]) for step, metrics in logged.items()]
    alone = fit(line(), batches, loss, SETTINGS)
    assert torch.equal(watched.weight, alone.weight), "looking on changes nothing"


def test_who_looks_on_may_stop_and_the_next_run_counts_on(tmp_path):
    class Enough(Exception): pass

    def stop(step, metrics):
        if step == 5: raise Enough
    with pytest.raises(Enough): fit(line(), batches, loss, SETTINGS, tmp_path, on_step=stop)
    steps = []
    again = fit(line(), batches, loss, SETTINGS, tmp_path, on_step=lambda step, metrics: steps.append(step))
    assert steps == list(range(6, 21)), "the checkpoint of step 5 was written before"
    assert torch.equal(again.weight, fit(line(), batches, loss, SETTINGS).weight)


@pytest.mark.parametrize("flags, name", [(dict(steps=0), "steps"), (dict(lr=0.0), "lr"),
                                         (dict(clip=-1.0), "clip")])
def test_settings_out_of_range_are_refused_by_name(flags, name):
    with pytest.raises(ValueError, match=name): FitSettings(**flags)


def test_bf16_is_asked_of_the_machine_and_never_raises():
    assert has_bf16() in (True, False)
