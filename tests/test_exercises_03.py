"""Each exercise of chapter 03: its test passes the reference and says what is wrong with wrong answers."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from worldmodels import transformer
from worldmodels.tools import check as tools
from worldmodels.tools.check import CheckFailed, check

PAIRS = [(F.scaled_dot_product_attention, transformer.test_attention),
         (transformer.window_mask, transformer.test_window_mask),
         (transformer.apply_rope, transformer.test_apply_rope),
         (transformer.ring_mask, transformer.test_ring_mask),
         (transformer.shift, transformer.test_shift),
         (transformer.stop_gradient, transformer.test_stop_gradient)]


@pytest.fixture(autouse=True)
def record(tmp_path, monkeypatch): monkeypatch.setattr(tools, "RECORD", tmp_path / ".progress.json")


@pytest.mark.parametrize("reference, test", PAIRS, ids=lambda f: f.__name__)
def test_the_reference_passes(reference, test):
    assert check(reference, reference, test, name="x") is reference


@pytest.mark.parametrize("reference, test", PAIRS, ids=lambda f: f.__name__)
def test_a_stub_gives_way_to_the_reference(reference, test):
    def stub(*_, **__): raise NotImplementedError
    assert check(stub, reference, test, name="x") is reference


# Exercise 1: attention

def make_attention(scale=lambda d: d ** -0.5, axis=-1, masked="before", values="v"):
    def attention(q, k, v, mask):
        match = q @ k.transpose(-2, -1) * scale(q.shape[-1])
        if masked == "before": w = match.masked_fill(~mask, -torch.inf).softmax(axis)
        elif masked == "zero": w = (match * mask).softmax(axis)
        elif masked == "after": w = match.softmax(axis) * mask
        elif masked == "inverted": w = match.masked_fill(mask, -torch.inf).softmax(axis)
        return w @ (v if values == "v" else k)
    return attention


def test_a_right_attention_in_other_words_passes(): transformer.test_attention(make_attention())


@pytest.mark.parametrize("wrong, message", [
    (make_attention(scale=lambda d: 1.0), "divided by √d"),
    (make_attention(scale=lambda d: 1 / d), "divided by √d"),
    (make_attention(axis=-2), "a query's weights sum to 1 over the keys"),
    (make_attention(masked="zero"), "sees only itself gets its own value"),
    (make_attention(masked="after"), "sees only itself gets its own value"),
    (make_attention(masked="inverted"), "true where a query may look"),
    (make_attention(values="k"), "their average is that value")])
def test_a_wrong_attention_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): transformer.test_attention(wrong)


# Exercise 2: the table

def make_window(low=0, wide=0, episodes="own", transposed=False, squeeze=False):
    def window_mask(restart, context):
        t = torch.arange(restart.shape[1])
        back = t - t[:, None] if transposed else t[:, None] - t
        e = restart.cumsum(1)
        if episodes == "first row": e = e[:1].expand_as(e)
        if episodes == "none": e = torch.zeros_like(e)
        if episodes == "first": e = (restart.cumsum(1) > 0).long()  # later restarts do not count
        if episodes == "before": e = F.pad(e, (1, 0))[:, :-1]  # counts the restart one step late
        mask = (back >= low) & (back < context + wide) & (e[:, :, None] == e[:, None])
        return mask if squeeze else mask[:, None]
    return window_mask


def test_a_right_table_in_other_words_passes(): transformer.test_window_mask(make_window())


@pytest.mark.parametrize("wrong, message", [
    (make_window(squeeze=True), "axis of length 1 for the heads"),
    (make_window(low=1), "every token sees itself"),
    (make_window(low=-10), "no token sees a later one"),
    (make_window(transposed=True), "no token sees a later one"),
    (make_window(wide=1), "a context of 3 is three tokens, itself among them"),
    (make_window(episodes="none"), "nothing before it is seen"),
    (make_window(episodes="before"), "nothing before it is seen"),
    (make_window(episodes="first"), "nothing before it is seen|its own restarts"),
    (make_window(episodes="first row"), "its own restarts")])
def test_a_wrong_table_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): transformer.test_window_mask(wrong)


# Exercise 3: apply_rope

def make_rope(exponent=-1.0, base=10_000.0, one_speed=False, dtype=torch.float64, signs=(1, -1, 1, 1),
              interleaved=False):
    def apply_rope(x, at):
        half = x.shape[-1] // 2
        if one_speed: exponent_of_pair = torch.zeros(half, dtype=dtype)
        else: exponent_of_pair = exponent * torch.arange(half, dtype=dtype) / half
        speed = base ** exponent_of_pair
        angle = at.to(dtype)[:, None] * speed
        cos, sin = angle.cos().float(), angle.sin().float()
        a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
        first, second = signs[0] * a * cos + signs[1] * b * sin, signs[2] * a * sin + signs[3] * b * cos
        return torch.stack([first, second], -1).flatten(-2) if interleaved else torch.cat([first, second], -1)
    return apply_rope


@pytest.mark.parametrize("right", [
    make_rope(), make_rope(interleaved=True), make_rope(signs=(1, 1, -1, 1))])
def test_a_right_rotation_in_other_words_passes(right): transformer.test_apply_rope(right)


@pytest.mark.parametrize("wrong, message", [
    (make_rope(one_speed=True), "pairs turn at different speeds"),
    (make_rope(dtype=torch.float32), "angles in double precision"),
    (make_rope(exponent=-0.5), "of d = 8 numbers"),
    (make_rope(exponent=-2), "of d = 8 numbers"),
    (make_rope(exponent=1), "of d = 8 numbers|double precision"),
    (make_rope(base=100.0), "of d = 8 numbers"),
    (make_rope(signs=(1, 1, 1, 1)), "keeps lengths"),
    (make_rope(signs=(1, -1, 1, -1)), "position 0 turns nothing"),
    (lambda x, at: x + 0.1 * at[:, None], "keeps lengths"),
    (lambda x, at: x, "another position, another angle"),
    (lambda x, at: make_rope()(x, at % 7), "distance alone")])
def test_a_wrong_rotation_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): transformer.test_apply_rope(wrong)


# Exercise 4: the ring

def in_a_row(at, age, context):  # forgets that the ring begins anew
    back = at % context - torch.arange(context)
    return (back >= 0) & (back < age[:, None])


@pytest.mark.parametrize("wrong, message", [
    (lambda at, age, context: torch.arange(context) < age[:, None], "what it has just written"),
    (lambda at, age, context: (at - torch.arange(context)) % context <= age[:, None],
     "what it has just written"),
    (lambda at, age, context: (torch.arange(context) - at) % context < age[:, None], "the slot before too"),
    (lambda at, age, context: (at - 1 - torch.arange(context)) % context < age[:, None],
     "what it has just written"),
    (in_a_row, "the slot before the first is the last"),
    (lambda at, age, context: (at - torch.arange(context)) % context < age,
     "one row for each world|could not|must match")])
def test_a_wrong_ring_is_told(wrong, message):
    with pytest.raises((CheckFailed, RuntimeError), match=message): transformer.test_ring_mask(wrong)


# Exercise 5: one place late

@pytest.mark.parametrize("wrong, message", [
    (lambda z: z, "told what it is to predict"),
    (lambda z: z.roll(1, -1), "what does the first token carry"),
    (lambda z: F.pad(z[..., 1:], (0, 1)), "what does the first token carry|later ones"),
    (lambda z: z[..., :-1], "one token a dimension"),
    (lambda z: F.pad(z[..., :-2], (2, 0)), "depends on every earlier dimension"),
    (lambda z: torch.zeros_like(z), "depends on every earlier dimension"),
    (lambda z: F.pad(z[..., :-1], (1, 0)).cumsum(-1), "carries z_{i-1} as it is")])
def test_a_wrong_shift_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): transformer.test_shift(wrong)


# Exercise 6: the stop

def make_stop(inputs=False, target=True, prediction=False, heads=True, scale=1.0):
    def stop_gradient(model):
        def stopped(z, a, restart=None):
            p = model(z.detach() if inputs else z, a, restart)
            def nll(x):
                out = scale * p.nll(x.detach() if target else x)
                return out.detach() if prediction else out
            if not heads: return SimpleNamespace(nll=nll, reward=None, done=None)
            return SimpleNamespace(nll=nll, reward=p.reward, done=p.done)
        return stopped
    return stop_gradient


def without_gradient(model):
    def stopped(z, a, restart=None):
        with torch.no_grad(): p = model(z, a, restart)
        with torch.no_grad(): fixed = {k: getattr(p, k) for k in ("reward", "done")}
        def nll(x):
            with torch.no_grad(): return p.nll(x)
        return SimpleNamespace(nll=nll, **fixed)
    return stopped


def test_a_right_stop_in_other_words_passes(): transformer.test_stop_gradient(make_stop())


@pytest.mark.parametrize("wrong, message", [
    (lambda model: model, "no gradient reaches it"),
    (make_stop(inputs=True), "what M reads is trained"),
    (make_stop(inputs=True, target=False), "no gradient reaches it"),
    (make_stop(prediction=True), "M learns from it"),
    (without_gradient, "M learns from it"),
    (make_stop(heads=False), "the heads are passed on"),
    (lambda model: lambda z, a, restart=None: make_stop()(model)(z, a), "a and restart as they came"),
    (make_stop(scale=32.0), "the NLL is the one without the stop")])
def test_a_wrong_stop_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): transformer.test_stop_gradient(wrong)
