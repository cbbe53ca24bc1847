"""Chapter 01's checks: each passes the reference and names what is wrong in plausible wrong answers."""
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from worldmodels import vae
from worldmodels.tools.check import CheckFailed


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


REFERENCES = [(vae.test_reparameterize, vae.reparameterize), (vae.test_kl_divergence, vae.kl_divergence),
              (vae.test_encoder, vae.encoder), (vae.test_reconstruction_error, vae.reconstruction_error),
              (vae.test_vae_loss, vae.vae_loss)]


@pytest.mark.parametrize("test, reference", REFERENCES)
def test_the_reference_passes(test, reference): test(reference)


def test_a_star_import_brings_no_exercise_test():
    assert not [name for name in vae.__all__ if name.startswith("test_")]


def same_noise_in_a_row(mu, logvar): return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu[..., :1])


def same_noise_always(mu, logvar):
    noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
    return mu + torch.exp(0.5 * logvar) * noise


def no_grad(mu, logvar):
    with torch.no_grad(): return vae.reparameterize(mu, logvar)


DRAWS = [
    (lambda mu, logvar: mu, "standard deviation"),
    # no square root
    (lambda mu, logvar: mu + logvar.exp() * torch.randn_like(mu), "logvar is the log of the variance"),
    # forgotten exp
    (lambda mu, logvar: mu + logvar * torch.randn_like(mu), "logvar is the log of the variance"),
    (lambda mu, logvar: torch.exp(0.5 * logvar) * torch.randn_like(mu), "its mean is mu"),
    # uniform noise
    (lambda mu, logvar: mu + torch.exp(0.5 * logvar) * torch.rand_like(mu), "its mean is mu"),
    (lambda mu, logvar: torch.normal(mu, torch.exp(0.5 * logvar)), "z moves with mu"),
    (lambda mu, logvar: vae.reparameterize(mu.detach(), logvar.detach()), "a gradient can flow"),
    (lambda mu, logvar: vae.reparameterize(mu, logvar.detach()), "logvar"),
    (lambda mu, logvar: vae.reparameterize(mu, logvar)[0], "one z for each mu"),
    (no_grad, "a gradient can flow"),
    (same_noise_in_a_row, "noise of its own"),
    (same_noise_always, "draws anew")]

KLS = [
    (lambda mu, logvar: -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).mean(-1), "summed, not averaged"),
    (lambda mu, logvar: -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(), "one number for each sample"),
    (lambda mu, logvar: -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1), "more axes in front"),
    (lambda mu, logvar: -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(0), "one number for each sample"),
    (lambda mu, logvar: -0.5 * (1 + logvar - mu.pow(2) - logvar).sum(-1), "the KL is 0"),  # forgotten exp
    # wrong sign
    (lambda mu, logvar: 0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1), "a mean of 1 costs half"),
    # no half
    (lambda mu, logvar: -(1 + logvar - mu.pow(2) - logvar.exp()).sum(-1), "a mean of 1 costs half a nat"),
    # logvar taken for log σ
    (lambda mu, logvar: -0.5 * (1 + 2 * logvar - mu.pow(2) - (2 * logvar).exp()).sum(-1), "logvar = log 4"),
    # KL(p ‖ q)
    (lambda mu, logvar: -0.5 * (1 - logvar - (1 + mu.pow(2)) / logvar.exp()).sum(-1), "logvar = log 4"),
    (lambda mu, logvar: vae.kl_divergence(mu.detach(), logvar), "the gradient of mu"),
    (lambda mu, logvar: vae.kl_divergence(mu, logvar.detach()), "the gradient of logvar"),
    (lambda mu, logvar: vae.kl_divergence(mu, logvar).detach(), "a gradient can flow")]


def layers(pad=lambda size: int(size == 96), kernel=4, widths=(32, 64, 128, 256), relu=(1, 1, 1, 1),
           flat=True):
    def make(size):
        net, before = [], 3
        for width, active in zip(widths, relu):
            net += [nn.Conv2d(before, width, kernel, 2, pad(size))] + [nn.ReLU()] * active
            before = width
        return nn.Sequential(*net, *[nn.Flatten()] * flat)
    return make


ENCODERS = [
    (layers(pad=lambda size: 0), "planes of 96 pixels"),
    (layers(pad=lambda size: 1), "planes of 64 pixels"),
    (layers(flat=False), "in one axis"),
    (layers(relu=(1, 1, 1, 0)), "the last one too"),
    (layers(relu=(0, 0, 0, 0)), "ReLU"),
    (layers(widths=(32, 32, 32, 256)), "32, 64, 128 and 256 channels"),
    (layers(kernel=5), "planes of 64 pixels"),
    (layers(kernel=3, pad=lambda size: 0), "weights|planes")]


def bce(logits, planes): return F.binary_cross_entropy_with_logits(logits.float(), planes, reduction="none")


def error_with(gaussian, bernoulli=bce, reduce=lambda x: x.sum((1, 2, 3))):
    def error(logits, planes, likelihood="gaussian"):
        return reduce((gaussian if likelihood == "gaussian" else bernoulli)(logits, planes))
    return error


def squares(logits, planes): return (torch.sigmoid(logits.float()) - planes) ** 2


ERRORS = [
    (error_with(squares, reduce=lambda x: x.mean((1, 2, 3))), "summed, no mean"),
    (error_with(squares, reduce=lambda x: x.sum()), "one number for each frame"),
    (error_with(squares, reduce=lambda x: x.sum(0)), "one number for each frame"),
    (error_with(lambda logits, planes: (logits.float() - planes) ** 2), "grey"),  # forgotten sigmoid
    (error_with(lambda logits, planes: 0.5 * squares(logits, planes)), "grey"),
    (error_with(lambda logits, planes: squares(logits, planes).sqrt()), "grey"),  # absolute, not squared
    (error_with(squares, lambda logits, planes: -torch.log(torch.sigmoid(logits)) * planes
                - torch.log(1 - torch.sigmoid(logits)) * (1 - planes)), "work on logits"),
    # sigmoid twice
    (error_with(squares, lambda logits, planes: bce(torch.sigmoid(logits), planes)), "coin of 1/2"),
    (error_with(squares, squares), "coin of 1/2"),  # the likelihood ignored
    (error_with(lambda logits, planes: (torch.sigmoid(logits) - planes.to(logits.dtype)) ** 2),
     "float32 first"),
    # the picture is not looked at
    (error_with(lambda logits, planes: torch.sigmoid(logits.float()) ** 2), "distance of sigmoid"),
    (error_with(squares, lambda logits, planes: F.softplus(logits.float())), "every grey"),
    (error_with(squares, lambda logits, planes: bce(logits, (planes > 0.5).float())), "every grey")]


def clamp(kl, low, mu): return kl.clamp(min=low)


def average(r, kl, beta): return (r + beta * kl).mean()


def loss_with(floor=clamp, total=average, shown=None, likelihood=lambda settings: settings.likelihood,
              reconstruct=lambda r: r, planes=vae.to_planes):
    def loss(v, frames, settings):
        logits, mu, logvar = v(frames)
        r = reconstruct(vae.reconstruction_error(logits, planes(frames), likelihood(settings)))
        kl = vae.kl_divergence(mu, logvar)
        pressed = floor(kl, settings.kl_floor * settings.latent, mu)
        shown_kl = {"pressed": pressed, "weighed": settings.beta * kl}.get(shown, kl)
        parts = {"reconstruction": r.mean(), "kl": shown_kl.mean()}
        if shown != "attached": parts = {name: part.detach() for name, part in parts.items()}
        return total(r, pressed, settings.beta), parts
    return loss


def per_dimension(kl, low, mu): return (0.5 * mu.pow(2)).clamp(min=low / mu.shape[-1]).sum(-1)


def floor_of_one_dimension(kl, low, mu): return kl.clamp(min=low / mu.shape[-1])


def straight_through(kl, low, mu): return kl + (kl.clamp(min=low) - kl).detach()


def not_scaled(frames): return frames.permute(0, 3, 1, 2).float()  # 0 to 255


def wrong_order(frames): return vae.to_planes(frames).reshape(len(frames), 8, 8, 3).permute(0, 3, 1, 2)


LOSSES = [
    (loss_with(floor=lambda kl, low, mu: kl), "counts as the floor"),
    (loss_with(floor=lambda kl, low, mu: kl.mean().clamp(min=low)), "for each frame, before the average"),
    (loss_with(floor=per_dimension), "not on each dimension"),
    (loss_with(floor=lambda kl, low, mu: F.relu(kl - low)), "counts as the floor"),  # subtracted
    (loss_with(floor=lambda kl, low, mu: kl.clamp(max=low)), "counts as the floor"),  # a ceiling
    (loss_with(floor=floor_of_one_dimension), "counts as the floor"),
    (loss_with(floor=straight_through), "no gradient"),
    (loss_with(shown="pressed"), "before the floor"),
    (loss_with(shown="attached"), "detached"),
    (loss_with(total=lambda r, kl, beta: (beta * r + kl).mean()), "beta weighs the KL"),
    (loss_with(total=lambda r, kl, beta: (r + kl).mean()), "beta weighs the KL"),
    (loss_with(total=lambda r, kl, beta: (r + beta * kl).sum()), "averaged over the batch, not summed"),
    (loss_with(reconstruct=lambda r: r / 192), "summed over a frame's pixels"),
    (loss_with(planes=not_scaled), r"against to_planes\(frames\)"),
    (loss_with(planes=wrong_order), r"against to_planes\(frames\)"),
    (loss_with(shown="weighed"), "kl is told without beta"),
    (loss_with(likelihood=lambda settings: "gaussian"), "likelihood is the settings'")]


ANSWERS = zip(REFERENCES, (DRAWS, KLS, ENCODERS, ERRORS, LOSSES))
WRONG = [(test, wrong, message) for (test, _), answers in ANSWERS for wrong, message in answers]
IDS = [f"{test.__name__}-{i}" for i, (test, _, _) in enumerate(WRONG)]


@pytest.mark.parametrize("test, wrong, message", WRONG, ids=IDS)
def test_a_wrong_answer_is_named(test, wrong, message):
    with pytest.raises(CheckFailed) as failure: test(wrong)
    assert re.search(message, str(failure.value)), str(failure.value)
