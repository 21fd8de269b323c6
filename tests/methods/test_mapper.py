from __future__ import annotations

import json
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import kmapper
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import postgrad
from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.methods import _mapper_rows
from postgrad.methods.mapper import MapperClassifier
from postgrad.methods.mapper_transformer import MapperTransformer
from postgrad.models.registry import create_model

SMALL: Any = {"n_components": 3, "n_intervals": 5, "n_neighbors": 6}
QUICK: Any = {**SMALL, "hidden": (16,), "epochs": 15, "batch_size": 20}


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_dataset("digits", limit=200)


@pytest.fixture(scope="module")
def fitted(digits: Any) -> MapperClassifier:
    return MapperClassifier(**QUICK).fit(digits.train.images, digits.train.labels)


def _blobs(seed: int = 0, n: int = 120) -> tuple[Any, Any]:
    generator = default_rng(seed)
    labels = generator.integers(0, 3, n)
    return generator.normal(size=(n, 5)) + 4 * np.eye(5)[labels], labels


def _sets(mapper: MapperTransformer, coordinate: int) -> set[frozenset[int]]:
    return {frozenset(node.members) for node in mapper.graph(coordinate).nodes}


# oracles


class _Cover(kmapper.Cover):
    """Our intervals as KeplerMapper takes them."""

    def __init__(self, cover: Any) -> None:
        super().__init__(n_cubes=len(cover), perc_overlap=cover.overlap)
        self.cover = cover

    def fit(self, data: Any) -> Any:
        return list(range(len(self.cover)))

    def transform(self, data: Any, centers: Any = None) -> Any:
        first, last = self.cover.of(data[:, 1])
        found = (data[(first <= i) & (i <= last)] for i in range(len(self.cover)))
        return [cube for cube in found if len(cube)]


class _SingleLinkage(ClusterMixin, BaseEstimator):
    """scipy's single linkage, cut below the first empty bin."""

    def __init__(self, min_samples: int = 1) -> None:
        self.min_samples = min_samples

    def fit(self, x: Any, y: Any = None) -> Any:
        if len(x) < 3:
            self.labels_ = np.zeros(len(x), dtype=int)
            return self
        merges = linkage(x, "single")
        counts, edges = np.histogram(merges[:, 2], bins=10)
        empty = np.flatnonzero(counts == 0)
        height = edges[empty[0]] if len(empty) else np.inf
        self.labels_ = fcluster(merges, height, "distance")
        return self


@pytest.mark.parametrize("kind", ["uniform", "balanced"])
def test_nodes_and_edges_are_keplermappers(digits: Any, kind: Any) -> None:
    rows = digits.train.images.flatten(1).double().numpy() / 255
    mapper = MapperTransformer(n_components=4, intervals=kind).fit(rows)
    for c, cover in enumerate(mapper.committee_.covers):
        lens = mapper.committee_.values[:, c : c + 1]
        theirs: Any = kmapper.KeplerMapper(verbose=0).map(lens, rows, clusterer=_SingleLinkage(), cover=_Cover(cover))
        graph = mapper.graph(c)
        assert {frozenset(node.members) for node in graph.nodes} == {frozenset(m) for m in theirs["nodes"].values()}
        assert len(graph.nodes) == len(theirs["nodes"])
        members = {node.id: frozenset(node.members) for node in graph.nodes}
        ours = {frozenset((members[edge.a], members[edge.b])) for edge in graph.edges}
        named = {name: frozenset(m) for name, m in theirs["nodes"].items()}
        assert ours == {frozenset((named[a], named[b])) for a, others in theirs["links"].items() for b in others}


@pytest.mark.parametrize("listed", [1, 20, 160], ids=["intervals are gone through", "mostly", "the list is enough"])
def test_rows_of_new_points_by_their_definition(listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mapper_rows, "_LIST", listed)
    rows, _ = _blobs()
    new = default_rng(5).normal(size=(15, 5)) * 4
    mapper = MapperTransformer(**SMALL).fit(rows)
    committee = mapper.committee_
    pca = PCA(3).fit(rows)
    values, known = mapper.latent_(_data(new)), committee.values
    np.testing.assert_allclose(np.abs(values), np.abs(pca.transform(new)), atol=1e-6)
    wanted = np.zeros((15, committee.n_nodes))
    for i, c in np.ndindex(15, 3):
        cover = committee.covers[c]
        low, high = (int(end[0]) for end in cover.asked(values[i : i + 1, c], 0.2))
        candidates = np.flatnonzero((known[:, c] >= cover.lower[low]) & (known[:, c] <= cover.upper[high]))
        distances = np.linalg.norm(rows[candidates] - new[i], axis=1)
        near = np.argsort(distances)[:6]
        weights = 1 / (distances[near] + 1e-5)
        members = committee.membership().toarray()[candidates[near]] * (committee.coordinate == c)
        wanted[i] += weights / weights.sum() @ members
    np.testing.assert_allclose(mapper.transform(new), wanted, atol=1e-6)


def _data(rows: Any) -> Any:
    from postgrad.methods._mapper_latent import Data

    return Data(rows)


def test_a_training_point_finds_its_own_nodes(digits: Any) -> None:
    images = digits.train.images
    mapper = MapperTransformer(n_components=5).fit(images)
    np.testing.assert_allclose(mapper.transform(images), mapper.fit_transform(images), atol=2e-3)
    hard = MapperTransformer(n_components=5, rows="hard").fit(images)
    np.testing.assert_array_equal(hard.transform(images), hard.fit_transform(images))


def test_soft_training_rows_leave_their_own_point_out() -> None:
    rows, _ = _blobs()
    soft = MapperTransformer(**SMALL, rows="soft").fit_transform(rows)
    binary = MapperTransformer(**SMALL).fit_transform(rows)
    assert not np.array_equal(soft, binary)
    assert set(np.unique(binary)) == {0, 1}
    np.testing.assert_allclose(soft.sum(axis=1), soft.sum(axis=1).round(0), atol=1)
    whole = MapperTransformer(**SMALL, rows="soft").fit(rows)
    first = whole.committee_.rows(rows[:1], whole.committee_.values[:1], k=7, margin=0.2, kind="published").toarray()
    near = soft[0] > 0
    assert (first[0][near] > 0).all()  # its 6 others are among the 7 that hold itself
    assert first[0].max() > 0.99 > soft[0].max() or not np.allclose(first[0], soft[0])


# invariance


@settings(max_examples=10)
@given(seed=st.integers(0, 99), intervals=st.sampled_from(["uniform", "balanced"]))
def test_order_and_isometries_change_nothing(seed: int, intervals: Any) -> None:
    generator = default_rng(seed)
    rows, _ = _blobs(seed, 60)
    order = generator.permutation(60)
    turn = np.linalg.qr(generator.normal(size=(5, 5)))[0]
    plain = MapperTransformer(**SMALL, intervals=intervals).fit(rows)
    moved = MapperTransformer(**SMALL, intervals=intervals).fit(rows[order] @ turn + 3)
    for c in range(3):
        back = {frozenset(int(order[member]) for member in node) for node in _sets(moved, c)}
        assert back == _sets(plain, c)


def test_rows_do_not_depend_on_what_else_is_asked(fitted: MapperClassifier, digits: Any) -> None:
    images = digits.test.images[:40]
    whole = fitted.predict_proba(images)
    parts = np.concatenate([fitted.predict_proba(part) for part in images.split(7)])
    np.testing.assert_allclose(parts, whole, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_and_layouts_of_the_same_images(fitted: MapperClassifier, digits: Any, dtype: torch.dtype) -> None:
    images = digits.test.images[:9]
    wanted = fitted.predict_proba(images)
    floats = (images.to(dtype) / 255).contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(fitted.predict_proba(floats), wanted, atol=1e-5)
    wide = torch.cat([floats, floats], dim=3)[..., :8]
    np.testing.assert_allclose(fitted.predict_proba(wide.numpy()), wanted, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(fitted.predict_proba(images), wanted)


# the corners


def test_duplicated_points_share_their_nodes() -> None:
    rows, _ = _blobs(n=40)
    mapper = MapperTransformer(**SMALL).fit(np.concatenate([rows, rows]))
    members = mapper.fit_transform(np.concatenate([rows, rows]))
    np.testing.assert_array_equal(members[:40], members[40:])


@pytest.mark.parametrize(
    ("rows", "new"),
    [
        (np.ones((8, 3)), np.zeros((2, 3))),
        (np.arange(6.0)[:, None], np.array([[-50.0], [2.5], [900.0]])),
        (np.array([[0.0], [0.1], [0.2], [9.0]]), np.array([[4.5]])),
        (np.array([[1.0, 2.0]]), np.array([[5.0, 5.0]])),
    ],
    ids=["all alike", "outside the range", "an empty interval", "one sample"],
)
@pytest.mark.parametrize("kind", ["published", "soft", "hard"])
def test_new_points_anywhere_get_nodes(rows: Any, new: Any, kind: Any) -> None:
    mapper = MapperTransformer(rows=kind).fit(rows)
    found = mapper.transform(new)
    assert found.shape == (len(new), mapper.committee_.n_nodes)
    assert np.isfinite(found).all()
    assert (found.sum(axis=1) > 0.99).all() or kind == "hard"


def test_one_class_and_no_points(digits: Any) -> None:
    rows, _ = _blobs(n=20)
    one = MapperClassifier(**QUICK).fit(rows, np.full(20, "only"))
    assert set(one.predict(rows)) == {"only"}
    assert one.predict_proba(rows).shape == (20, 1)


def test_no_images_give_no_rows(fitted: MapperClassifier, digits: Any) -> None:
    assert fitted.predict_proba(digits.test.images[:0]).shape == (0, 10)


@settings(max_examples=15)
@given(
    n=st.integers(1, 25),
    d=st.integers(1, 6),
    intervals=st.integers(1, 6),
    overlap=st.floats(0, 0.8),
    cut=st.sampled_from(["histogram", "gap"]),
    seed=st.integers(0, 99),
)
def test_any_points_and_settings(n: int, d: int, intervals: int, overlap: float, cut: Any, seed: int) -> None:
    rows = default_rng(seed).integers(0, 5, size=(n, d)).astype(np.float32)
    mapper = MapperTransformer(n_components=4, n_intervals=intervals, overlap=overlap, cut=cut, n_neighbors=3)
    members = mapper.fit_transform(rows)
    assert (members.sum(axis=0) > 0).all()  # no node is empty
    coordinates = mapper.committee_.values.shape[1]
    assert (members.sum(axis=1) >= coordinates).all()
    per_coordinate = np.stack(
        [mapper.transform(rows)[:, mapper.committee_.coordinate == c].sum(axis=1) for c in range(coordinates)]
    )
    assert (per_coordinate > 0.999).all()


# scikit-learn


@parametrize_with_checks([MapperTransformer()])
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([MapperClassifier(hidden=(32,), epochs=30, lr=0.05), MapperClassifier()])
def test_scikit_learns_checks_of_the_classifier(estimator: Any, check: Any) -> None:
    check(estimator)


def test_a_pipeline_with_any_classifier() -> None:
    rows, labels = _blobs()
    pipeline = make_pipeline(StandardScaler(), MapperTransformer(**SMALL), LogisticRegression())
    assert pipeline.fit(rows[:80], labels[:80]).score(rows[80:], labels[80:]) > 0.9


def test_grid_search() -> None:
    rows, labels = _blobs(n=60)
    search = GridSearchCV(MapperClassifier(**QUICK), {"n_intervals": [2, 5], "rows": ["published", "soft"]}, cv=2)
    assert search.fit(rows, labels).best_score_ > 0.8


@pytest.mark.parametrize("head", [LogisticRegression(), GaussianNB()], ids=["takes sparse rows", "takes dense rows"])
def test_any_head(head: Any) -> None:
    rows, labels = _blobs()
    classifier = MapperClassifier(**SMALL, head=head).fit(rows[:80], labels[:80])
    transformer = MapperTransformer(**SMALL)
    wanted = clone(head).fit(transformer.fit_transform(rows[:80]), labels[:80])
    np.testing.assert_allclose(
        classifier.predict_proba(rows[80:]), wanted.predict_proba(transformer.transform(rows[80:])), atol=1e-4
    )


def test_sparse_output() -> None:
    rows, _ = _blobs(n=30)
    found = MapperTransformer(**SMALL, sparse_output=True).fit_transform(rows)
    assert sparse.issparse(found)
    np.testing.assert_array_equal(found.toarray(), MapperTransformer(**SMALL).fit_transform(rows))


def test_it_learns_and_learns_alike_again(fitted: MapperClassifier, digits: Any) -> None:
    test = digits.test
    assert fitted.score(test.images, test.labels.numpy()) > 0.5
    again = clone(fitted).fit(digits.train.images, digits.train.labels)
    np.testing.assert_array_equal(again.predict_proba(test.images[:20]), fitted.predict_proba(test.images[:20]))


# saving


def test_copies_and_pickles_answer_alike(fitted: MapperClassifier, digits: Any, tmp_path: Path) -> None:
    images = digits.test.images[:9]
    for copy in (deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(copy.predict_proba(images), fitted.predict_proba(images))


@pytest.mark.parametrize("latent", ["pca", "autoencoder", "vae", "vae-sampled"])
def test_saved_and_loaded(latent: Any, digits: Any, tmp_path: Path) -> None:
    train, new = digits.train, digits.test.images[:9]
    mapper = MapperClassifier(**QUICK, latent=latent, latent_epochs=2, class_names=list("abcdefghij"))
    mapper.fit(train.images, train.labels).save(tmp_path)
    loaded = postgrad.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(new), mapper.predict_proba(new))
    assert loaded.graph(1) == mapper.graph(1)
    assert loaded.class_names == list("abcdefghij")


@pytest.mark.parametrize("latent", ["penultimate", "gradients"])
def test_latents_of_a_network(latent: Any, digits: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = create_model("mlp", num_classes=10, in_channels=1, image_size=8)
    network.preprocess = digits.preprocess
    train, new = digits.train, digits.test.images[:9]
    mapper = MapperClassifier(network, **QUICK, latent=latent, class_names=digits.class_names)
    mapper.fit(train.images, train.labels)
    if latent == "penultimate":
        hidden = (
            network[:-1](digits.preprocess(train.images)).detach().numpy() if hasattr(network, "__getitem__") else None
        )
        if hidden is not None:
            wanted = np.abs(PCA(3).fit_transform(hidden))
            np.testing.assert_allclose(np.abs(mapper.transformer_.committee_.values), wanted, rtol=1e-2, atol=1e-3)
    mapper.save(tmp_path)
    np.testing.assert_array_equal(postgrad.load(tmp_path).predict_proba(new), mapper.predict_proba(new))
    rows = train.images.flatten(1).numpy()
    with pytest.raises(UserError, match="images"):
        MapperClassifier(network, **QUICK, latent=latent).fit(rows, train.labels)


def test_a_head_that_must_be_pickled_is_not_saved(tmp_path: Path) -> None:
    rows, labels = _blobs(n=30)
    with pytest.raises(UserError, match="LogisticRegression can only be stored by pickling") as error:
        MapperClassifier(**SMALL, head=LogisticRegression()).fit(rows, labels).save(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(NotFittedError):
        MapperClassifier().save(tmp_path)


# the graph


def test_graph_as_json(fitted: MapperClassifier, digits: Any) -> None:
    graph = fitted.graph(0)
    document = json.loads(graph.to_json())
    labels = digits.train.labels.numpy()
    names = [str(name) for name in fitted.classes_]
    for node, written in zip(graph.nodes, document["nodes"], strict=True):
        assert written["size"] == len(node.members) == sum(node.classes.values())
        assert node.classes == {
            name: int((labels[list(node.members)] == i).sum())
            for i, name in enumerate(names)
            if (labels[list(node.members)] == i).any()
        }
        assert node.limits[0] - 1e-9 <= node.mean <= node.limits[1] + 1e-9
    shared = {(edge.a, edge.b): edge.shared for edge in graph.edges}
    members = {node.id: set(node.members) for node in graph.nodes}
    wanted = {
        (a, b): len(members[a] & members[b]) for a in members for b in members if a < b and members[a] & members[b]
    }
    assert shared == wanted
    with pytest.raises(UserError, match="coordinate"):
        fitted.graph(3)


# mistakes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latent": "pcs"}, "did you mean"),
        ({"cut": "histogramm"}, "did you mean"),
        ({"n_intervals": 0}, "n_intervals: expected 1 or more"),
        ({"overlap": 1.0}, "overlap: expected a share from 0 to below 1"),
        ({"margin": -0.1}, "margin"),
        ({"overlap": "a"}, "overlap"),
        ({"head": "mpl"}, "head: expected 'mlp'"),
        ({"head": LinearSVC()}, "LinearSVC has no predict_proba"),
        ({"hidden": (0,)}, "hidden"),
        ({"memory": "100kB"}, "more than memory='100kB'"),
        ({"latent": "penultimate"}, "needs a network"),
        ({"latent": "vae"}, "takes numbers from 0 to 1"),
    ],
)
def test_wrong_settings_are_told_in_one_line(wrong: dict[str, Any], message: str) -> None:
    rows, labels = _blobs(n=20)
    with pytest.raises(UserError, match=message) as error:
        MapperClassifier(**{**QUICK, **wrong}).fit(rows, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value: float, fitted: MapperClassifier) -> None:
    rows, labels = _blobs(n=20)
    rows[3, 1] = value
    with pytest.raises(UserError):
        MapperClassifier(**QUICK).fit(rows, labels)
    with pytest.raises(UserError, match="image 1"):
        fitted.predict(np.stack([np.zeros((1, 8, 8)), np.full((1, 8, 8), value)]))


def test_other_shapes_than_in_fit(fitted: MapperClassifier) -> None:
    with pytest.raises(UserError, match="as in fit, got rows"):
        fitted.predict(np.zeros((4, 64)))
    with pytest.raises(UserError, match="expected rows"):
        MapperTransformer(**SMALL).fit(_blobs(n=20)[0]).transform(np.zeros((2, 1, 5, 1)))
