"""Inception score and Fréchet distance: their values where they are known, another's figures, and a real classifier."""

import math

import pytest
import torch

from genkernels.models import Classifier
from genkernels.train import Limits, open_dataset, start_run
from genkernels.train.errors import GenkernelsError
from genkernels.train.sample_metrics import (
    check_classifier,
    frechet_distance,
    inception_scores,
    sample_measures,
)


def normal(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Inception score ------------------------------------------------------------------------------------


def test_sure_images_of_all_classes_score_their_number_and_of_one_class_1():
    sure = torch.eye(7, dtype=torch.float64).repeat(20, 1).log()
    assert inception_scores(sure, 4).tolist() == pytest.approx([7] * 4)
    assert inception_scores(sure[:1].repeat(50, 1), 5).tolist() == pytest.approx([1] * 5)


def test_images_that_show_no_class_score_1():
    unsure = torch.full((40, 7), math.log(1 / 7), dtype=torch.float64)
    assert inception_scores(unsure, 3).tolist() == pytest.approx([1] * 3)


def test_a_score_is_the_exponent_of_the_mutual_information():
    """Two kinds of images, with p = (0.9, 0.1) and (0.2, 0.8), as many of each."""
    kinds = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    information = sum(
        0.5 * p * math.log(p / m) for kind in kinds.tolist() for p, m in zip(kind, (0.55, 0.45), strict=True)
    )
    (score,) = inception_scores(kinds.repeat(8, 1).log(), 1)
    assert score.item() == pytest.approx(math.exp(information), rel=1e-12)


def test_splits_are_scored_apart():
    sure = torch.eye(2, dtype=torch.float64).repeat_interleave(10, 0).log()
    assert inception_scores(sure, 2).tolist() == pytest.approx([1, 1])
    assert inception_scores(sure, 1).tolist() == pytest.approx([2])


# --- Fréchet distance -----------------------------------------------------------------------------------


def test_equal_sets_have_no_distance():
    features = normal(500, 12) @ normal(12, 12, 1)
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-9)
    few = normal(5, 12)  # fewer than features: a covariance without an inverse
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(torch.zeros(4, 3).double(), torch.zeros(6, 3).double()) == 0


def test_a_shift_costs_its_square_and_a_scale_the_square_of_the_spreads_difference():
    features = normal(400, 3)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert frechet_distance(features, features + shift) == pytest.approx(5.25)
    centred = features - features.mean(0)
    spread = torch.cov(centred.T).trace().item()
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * spread)


def test_one_feature_has_the_distance_of_two_normal_distributions_of_numbers():
    a, b = normal(50, 1), 2 + 3 * normal(70, 1, 1)
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected.item())


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save")
def test_figures_are_those_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")

    class Features(torch.nn.Module):  # the "images" are the features
        num_features = 9

        def forward(self, x):
            return x

    a, b = normal(300, 9) @ normal(9, 9, 1), 0.3 + normal(200, 9, 2)
    theirs = fid.FrechetInceptionDistance(Features(), input_img_size=(9,)).set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert frechet_distance(a, b) == pytest.approx(theirs.compute().item(), rel=1e-6)

    from torchmetrics.image.inception import InceptionScore

    logits = 2 * normal(120, 5, 3)
    score = InceptionScore(Features(), splits=2)
    score.update(logits)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = score.compute()
        torch.manual_seed(0)
        shuffled = logits[torch.randperm(120)]
    scores = inception_scores(shuffled.log_softmax(1), 2)
    assert (scores.mean().item(), scores.std().item()) == pytest.approx([value.item() for value in expected], rel=1e-6)


# --- a trained classifier -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")
    return open_dataset("digits")


@pytest.fixture(scope="module")
def judge(digits, tmp_path_factory):
    options = {"hidden_channels": 8, "latent_dim": 16}
    trainer, _ = start_run(
        "classifier",
        tmp_path_factory.mktemp("judge"),
        {"data": "digits", "batch_size": 100, "learning_rate": 5e-3},
        options,
    )
    trainer.run(Limits(steps=200))
    _, accuracy = trainer.objective.evaluate(trainer.model, trainer.test, how())
    assert accuracy.mean > 0.9
    return trainer.model


def how():
    from genkernels.train.objectives import Evaluating

    return Evaluating()


def figures(judge, drawn, real):
    return {measure.key: measure for measure in sample_measures(judge, drawn, real, 128)}


def test_real_digits_score_high_and_noise_and_one_digit_near_1(judge, digits):
    real = figures(judge, digits.train, digits.test)
    assert real["inception_score"].mean > 7 and real["real_inception_score"].mean > 6
    one = figures(judge, digits.train[digits.train_labels == 3], digits.test)
    noise = torch.randint(256, (1000, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    wrong = figures(judge, noise, digits.test)
    assert 1 <= one["inception_score"].mean < 1.6 and 1 <= wrong["inception_score"].mean < 3.5
    near, other, far = (found["frechet_distance"] for found in (real, one, wrong))
    assert 0 < near.mean < 0.1 * min(other.mean, far.mean)
    assert real["real_inception_score"].images == 299 and near.images == len(digits.train)


def test_the_error_of_the_distance_is_the_spread_over_sets_of_drawn_images(judge, digits):
    sets = digits.train[torch.randperm(1498, generator=torch.Generator().manual_seed(1))].split(250)[:5]
    found = [figures(judge, drawn, digits.test)["frechet_distance"] for drawn in sets]
    spread = torch.tensor([one.mean for one in found]).std().item()
    for one in found:
        assert spread / 4 < one.standard_error < 4 * spread


def test_images_in_the_order_of_their_classes_score_as_others(judge, digits):
    in_order = digits.train[digits.train_labels.argsort()]
    a, b = (figures(judge, images, digits.test)["inception_score"] for images in (in_order, digits.train))
    assert a.mean == pytest.approx(b.mean, rel=0.02)


def test_real_images_in_files_are_judged_as_those_in_memory(judge, digits):
    from genkernels.train.data.file_images import mapped

    found = figures(judge, digits.test, mapped(digits.test, lambda images: images))
    assert found["frechet_distance"].mean == pytest.approx(0, abs=1e-6)


def test_too_few_images_and_another_models_images_are_refused(judge, digits):
    with pytest.raises(GenkernelsError, match="classifier: expected at least 20 drawn images; got 19"):
        sample_measures(judge, digits.test[:19], digits.test, 64)
    with pytest.raises(GenkernelsError, match="classifier: expected at least 20 real images; got 3"):
        sample_measures(judge, digits.test, digits.test[:3], 64)
    with pytest.raises(GenkernelsError, match="expected one of images 3 x 28 x 28; got one of 1 x 8 x 8"):
        check_classifier(judge, 3, 28, 28)
    with pytest.raises(GenkernelsError, match="classifier: expected a run of train classifier; got a Linear"):
        check_classifier(torch.nn.Linear(1, 1), 1, 8, 8)
    assert check_classifier(judge, 1, 8, 8) is judge and isinstance(judge, Classifier)
