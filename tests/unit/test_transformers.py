"""Exports opened by transformers: the same numbers as ours, and what people do with a model there.

Shapes: B rows, L letters, D hidden, V bases.
"""

import functools
import importlib
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from data_prep import alphabet
from tests.examples.tiny_conv import TinyConv
from tests.exports import SIZES, export, network_of
from tests.unit.test_house import FLOORS, ROOT
from trainer import load_model
from trainer.models.network import Network
from trainer.models.portable_files import Portable
from trainer.models.registry import MODELS

LENGTHS = (40, 23, 1)
LORA = {"findna": ["expand", "contract"], "dilated-conv": ["contract"]}  # linear maps by their names


@functools.cache
def hf() -> Any:
    """transformers, imported when the first test needs it: each process of a suite collects all files."""
    return importlib.import_module("transformers")


@pytest.fixture(params=sorted(SIZES))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return {name: export(folder / name, network_of(name)) for name in sorted(MODELS)}


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """What transformers warns of."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    hf().logging.get_logger("transformers").addHandler(handler)
    yield found
    hf().logging.get_logger("transformers").removeHandler(handler)


def opened(auto: str, folder: Path, **options: Any) -> Any:
    """In eval mode, by the class of transformers that is called ``auto``."""
    return getattr(hf(), auto).from_pretrained(str(folder), trust_remote_code=True, **options).eval()


def tokenizer_of(folder: Path) -> Any:
    return hf().AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True)


def rows() -> tuple[Tensor, Tensor]:
    """(tokens, mask) [B, L] of rows of different lengths, with every letter and MASK in them."""
    generator = torch.Generator().manual_seed(1)
    letters_BL = torch.randint(0, alphabet.CLS, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask_BL = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.where(mask_BL.bool(), letters_BL, alphabet.PAD), mask_BL


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_the_numbers_are_ours_with_a_mask_and_without(
    exports: dict[str, Path], name: str, warned: list[str]
) -> None:
    network, (ids_BL, mask_BL) = network_of(name), rows()
    codes_BL, length_B = ids_BL.to(torch.uint8), mask_BL.sum(1)
    ours, hidden = network(codes_BL, length_B=length_B), network.backbone(codes_BL, length_B=length_B)
    letter_BL = mask_BL.bool()
    encoder, predictor = (opened(auto, exports[name]) for auto in ("AutoModel", "AutoModelForMaskedLM"))
    assert warned == []
    assert hf().AutoConfig.from_pretrained(str(exports[name]), trust_remote_code=True).model_type == name
    for mask in (mask_BL, None):
        found = encoder(ids_BL, attention_mask=mask, output_hidden_states=True)
        close(found.last_hidden_state[letter_BL], hidden.letters_BLD[letter_BL])
        close(found.pooler_output, ours.pooled_BD)
        close(found.summary_state, hidden.summary_BPD)
        layers = len(network.backbone.activation_modules())
        assert len(found.hidden_states) == 1 + layers
        assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
        logits_BLV = predictor(ids_BL, attention_mask=mask).logits
        close(logits_BLV[letter_BL], ours.logits_BLV[letter_BL])
    as_tuple = encoder(ids_BL, return_dict=False)
    assert torch.equal(as_tuple[1], found.pooler_output) and len(as_tuple) == 3


@torch.no_grad()
@pytest.mark.parametrize("code", [alphabet.A, alphabet.MASK, alphabet.PAD])
def test_padding_changes_nothing_whatever_stands_there(
    exports: dict[str, Path], name: str, code: int
) -> None:
    encoder, (ids_BL, mask_BL) = opened("AutoModel", exports[name]), rows()
    together = encoder(torch.where(mask_BL.bool(), ids_BL, code), attention_mask=mask_BL)
    for row, length in enumerate(LENGTHS):
        alone = encoder(ids_BL[row : row + 1, :length])
        close(together.last_hidden_state[row, :length], alone.last_hidden_state[0])
        close(together.pooler_output[row], alone.pooler_output[0])


def test_what_is_no_row_of_letters_is_refused(exports: dict[str, Path]) -> None:
    encoder = opened("AutoModel", exports["findna"])
    ids_BL, left_BL = torch.tensor([[0, 1, 2], [3, 2, 1]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    for given, sentence in (
        ({"attention_mask": left_BL}, r"row 1 has padding before a letter; .*padding_side is right"),
        ({"attention_mask": torch.zeros_like(ids_BL)}, "row 0 has no letter"),
        ({"attention_mask": left_BL[:, None]}, r"has shape \[2, 1, 3\] and input_ids \[2, 3\]"),
        ({"input_ids": torch.tensor([[7, 0, 1]])}, "row 0 has padding before a letter"),
        ({"input_ids": torch.tensor([[0, 8, 1]])}, "input_ids has 8; tokens are 0 to 7"),
        ({"inputs_embeds": torch.zeros(2, 3, 20)}, "give input_ids"),
        ({"output_attentions": True}, "has no attention"),
    ):
        with pytest.raises(ValueError, match=sentence):
            encoder(**{"input_ids": ids_BL} | given)


def test_the_tokenizer_reads_letters_as_we_do(exports: dict[str, Path], warned: list[str]) -> None:
    tokenizer = tokenizer_of(exports["findna"])
    letters = "".join(map(chr, range(ord("A"), ord("z") + 1)))
    for letter in letters:
        try:
            expected = alphabet.encode(letter.encode())[0].tolist()
        except ValueError:
            with pytest.raises(ValueError, match=r"character .* at position 2 is no nucleotide letter"):
                tokenizer(f"AC{letter}")
        else:
            assert tokenizer(letter)["input_ids"] == expected, letter
    special = (tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id)
    assert special == (alphabet.MASK, alphabet.CLS, alphabet.PAD)
    assert tokenizer("MASK")["input_ids"] == [4, 0, 4, 4], "four letters of IUPAC"
    batch = tokenizer(["acg[MASK]u", "RN"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[0, 1, 2, 5, 3], [4, 4, 7, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert tokenizer.batch_decode(batch["input_ids"]) == ["ACG[MASK]T", "NN[PAD][PAD][PAD]"]
    assert tokenizer.decode(batch["input_ids"][1], skip_special_tokens=True) == "NN"
    assert tokenizer("ACGTACGT", truncation=True, max_length=3)["input_ids"] == [0, 1, 2]
    assert len(tokenizer) == alphabet.SIZE and warned == []
    with pytest.raises(ValueError, match="position 7 is no nucleotide letter"):
        tokenizer("A[MASK]-")
    with pytest.raises(ValueError, match="one sequence at a time"):
        tokenizer("ACGT", "ACGT")
    with pytest.raises(ValueError, match="'X' is no token"):
        tokenizer.convert_tokens_to_ids(["A", "X"])
    with pytest.raises(ValueError, match="8 is no token; tokens are 0 to 7"):
        tokenizer.decode([8])


@torch.no_grad()
def test_the_masked_loss_counts_bases_alone(exports: dict[str, Path]) -> None:
    predictor, (ids_BL, mask_BL) = opened("AutoModelForMaskedLM", exports["findna"]), rows()
    labels_BL = torch.full_like(ids_BL, -100)
    labels_BL[0, :4], labels_BL[0, 4:6] = torch.tensor([0, 3, 1, 2]), torch.tensor([alphabet.N, alphabet.PAD])
    found = predictor(ids_BL, attention_mask=mask_BL, labels=labels_BL)
    close(found.loss, functional.cross_entropy(found.logits[0, :4], labels_BL[0, :4]))
    assert found.logits.shape == (*ids_BL.shape, alphabet.BASES)
    nothing = predictor(ids_BL, attention_mask=mask_BL, labels=torch.full_like(ids_BL, -100))
    assert float(nothing.loss) == 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "labels", "loss"),
    [
        ({"num_labels": 3}, torch.tensor([2, 0, 1]), functional.cross_entropy),
        ({"num_labels": 3}, torch.eye(3), functional.binary_cross_entropy_with_logits),
        ({"num_labels": 3, "problem_type": "regression"}, torch.eye(3), functional.mse_loss),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.eye(3).long(),
            lambda logits, labels: functional.binary_cross_entropy_with_logits(logits, labels.float()),
        ),
        ({"num_labels": 1}, torch.tensor([0.5, -1, 2]), lambda x, y: functional.mse_loss(x[:, 0], y)),
        ({}, torch.tensor([1, 0, 1]), functional.cross_entropy),
    ],
)
def test_a_new_head_has_the_loss_of_its_problem(
    exports: dict[str, Path], options: dict[str, Any], labels: Tensor, loss: Any
) -> None:
    classifier, (ids_BL, mask_BL) = (
        opened("AutoModelForSequenceClassification", exports["findna"], **options),
        rows(),
    )
    found = classifier(ids_BL, attention_mask=mask_BL, labels=labels)
    assert found.logits.shape == (3, options.get("num_labels", 2))
    close(found.loss, loss(found.logits, labels))
    pooled_BD = opened("AutoModel", exports["findna"])(ids_BL).pooler_output
    close(found.logits, classifier.classifier(pooled_BD))


def test_only_the_new_head_is_said_to_be_new(exports: dict[str, Path], name: str) -> None:
    for auto, missing in (
        (hf().AutoModel, set()),
        (hf().AutoModelForMaskedLM, set()),
        (hf().AutoModelForSequenceClassification, {"classifier.weight", "classifier.bias"}),
    ):
        _, said = auto.from_pretrained(str(exports[name]), trust_remote_code=True, output_loading_info=True)
        assert (said["missing_keys"], said["unexpected_keys"]) == (missing, set()), auto


@torch.no_grad()
def test_what_transformers_saves_opens_there_and_here(
    exports: dict[str, Path], name: str, tmp_path: Path
) -> None:
    predictor, (ids_BL, mask_BL) = opened("AutoModelForMaskedLM", exports[name]), rows()
    predictor.save_pretrained(tmp_path / "saved")
    tokenizer_of(exports[name]).save_pretrained(tmp_path / "saved")
    again = opened("AutoModelForMaskedLM", tmp_path / "saved")
    expected = predictor(ids_BL, attention_mask=mask_BL).logits
    assert torch.equal(again(ids_BL, attention_mask=mask_BL).logits, expected)
    assert tokenizer_of(tmp_path / "saved")("acgt")["input_ids"] == [0, 1, 2, 3]
    found = load_model(str(tmp_path / "saved"))(ids_BL.to(torch.uint8), length_B=mask_BL.sum(1)).logits_BLV
    close(found[mask_BL.bool()], expected[mask_BL.bool()])
    opened("AutoModel", exports[name]).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"model.safetensors does not fit its config"):
        load_model(str(tmp_path / "headless"))  # it has no nucleotide head


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(exports: dict[str, Path], name: str, dtype: torch.dtype) -> None:
    (ids_BL, mask_BL), whole = rows(), opened("AutoModel", exports[name])
    half = opened("AutoModel", exports[name], dtype=dtype)
    found = half(ids_BL, attention_mask=mask_BL)
    assert (found.last_hidden_state.dtype, found.pooler_output.dtype) == (dtype, torch.float32)
    expected = whole(ids_BL, attention_mask=mask_BL).pooler_output
    torch.testing.assert_close(found.pooler_output, expected, rtol=0.1, atol=0.05)
    predicted = opened("AutoModelForMaskedLM", exports[name], dtype=dtype)(ids_BL, attention_mask=mask_BL)
    assert predicted.logits.dtype == torch.float32


def test_gradient_checkpointing_changes_no_gradient(exports: dict[str, Path], name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        predictor = opened("AutoModelForMaskedLM", exports[name]).train()
        if checkpointing:
            predictor.gradient_checkpointing_enable()
            assert predictor.backbone.gradient_checkpointing
        predictor(torch.tensor([[0, 5, 2, 3]]), labels=torch.tensor([[-100, 1, -100, -100]])).loss.backward()
        gradients.append([p.grad for p in predictor.parameters() if p.grad is not None])
    assert gradients[0] and len(gradients[0]) == len(gradients[1])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_a_fresh_model_begins_as_ours(exports: dict[str, Path], name: str) -> None:
    config = hf().AutoConfig.from_pretrained(str(exports[name]), trust_remote_code=True)
    fresh = hf().AutoModelForMaskedLM.from_config(config, trust_remote_code=True).state_dict()
    ours = network_of(name).state_dict()
    assert fresh.keys() == ours.keys()
    for key, tensor in ours.items():
        assert tensor.shape == fresh[key].shape
        spread = [float(t.std()) if t.numel() > 1 else 0.0 for t in (tensor, fresh[key])]
        assert spread[0] == pytest.approx(spread[1], rel=0.5, abs=1e-3), key


def examples(tokenizer: Any, rows: int = 48) -> list[dict[str, Any]]:
    """Sequences of three lengths; class 1 is rich in G."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for row in range(rows):
        likely = torch.tensor([1.0, 1, 1 + 4 * (row % 2), 1])
        codes = torch.multinomial(likely, 20 + row % 3, replacement=True, generator=generator)
        letters = "".join("ACGT"[code] for code in codes)
        found.append(dict(tokenizer(letters)) | {"labels": row % 2})
    return found


def train(model: Any, folder: Path, **parts: Any) -> list[float]:
    """The losses that transformers' Trainer logs of some steps on a CPU."""
    arguments = hf().TrainingArguments(
        str(folder),
        max_steps=24,
        learning_rate=1e-2,
        per_device_train_batch_size=16,
        logging_steps=4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = hf().Trainer(model, arguments, **parts)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_trainer_learns_classes(exports: dict[str, Path], name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(exports[name])
    classifier = opened("AutoModelForSequenceClassification", exports[name])
    losses = train(
        classifier,
        tmp_path,
        train_dataset=examples(tokenizer),
        data_collator=hf().DataCollatorWithPadding(tokenizer),
    )
    assert losses[-1] < 0.7 * losses[0]


def test_the_trainer_learns_masked_letters(exports: dict[str, Path], name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(exports[name])
    rows = [{"input_ids": tokenizer("ACGT" * 6)["input_ids"]} for _ in range(48)]
    collator = hf().DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    losses = train(
        opened("AutoModelForMaskedLM", exports[name]), tmp_path, train_dataset=rows, data_collator=collator
    )
    assert losses[-1] < 0.9 * losses[0]


def test_lora_trains_beside_weights_that_stay(exports: dict[str, Path], name: str, tmp_path: Path) -> None:
    base = opened("AutoModelForSequenceClassification", exports[name])
    before = {key: value.clone() for key, value in base.backbone.state_dict().items()}
    peft = importlib.import_module("peft")
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=LORA[name], r=4)
    adapted, tokenizer = peft.get_peft_model(base, lora), tokenizer_of(exports[name])
    collator = hf().DataCollatorWithPadding(tokenizer)
    losses = train(adapted, tmp_path, train_dataset=examples(tokenizer), data_collator=collator)
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path / "adapter")
    after = {key.replace("base_layer.", ""): value for key, value in base.backbone.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    again = peft.PeftModel.from_pretrained(
        opened("AutoModelForSequenceClassification", exports[name]), tmp_path / "adapter"
    ).eval()
    ids_BL, mask_BL = rows()
    with torch.no_grad():
        expected = adapted.eval()(input_ids=ids_BL, attention_mask=mask_BL).logits
        assert torch.equal(again(input_ids=ids_BL, attention_mask=mask_BL).logits, expected)
        plain = again.unload()(input_ids=ids_BL, attention_mask=mask_BL).logits
    assert not torch.allclose(plain, expected)


def test_pipelines_fill_a_mask_and_give_features(exports: dict[str, Path], name: str) -> None:
    model, tokenizer = opened("AutoModelForMaskedLM", exports[name]), tokenizer_of(exports[name])
    found = hf().pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")("ACG[MASK]T", top_k=4)
    assert {each["token_str"] for each in found} == set("ACGT")
    assert sum(each["score"] for each in found) == pytest.approx(1)
    assert found[0]["sequence"] == f"ACG{found[0]['token_str']}T"
    encoder = opened("AutoModel", exports[name])
    features = hf().pipeline("feature-extraction", model=encoder, tokenizer=tokenizer, device="cpu")
    vectors = torch.tensor(features("ACGTA"))
    with torch.no_grad():
        close(vectors, encoder(torch.tensor([[0, 1, 2, 3, 0]])).last_hidden_state)


def test_it_needs_nothing_of_ours(exports: dict[str, Path], tmp_path: Path) -> None:
    """In a process that cannot import this repository."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"""
import sys
from importlib.util import find_spec
sys.path.append({site!r})  # without its .pth files, by which an editable install is found
assert not [name for name in {FLOORS!r} if find_spec(name)], sys.path
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
for folder in {[str(path) for path in exports.values()]!r}:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    tokens = tokenizer(["ACGT", "AC"], padding=True, return_tensors="pt")
    for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification):
        auto.from_pretrained(folder, trust_remote_code=True)(**tokens)
print([name for name in sys.modules if name.split(".")[0] in {FLOORS!r}])
"""
    own = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", code],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **own},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_blocks_of_the_docs_run_and_what_they_export_gives_the_same_numbers(
    exports: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch.export and ONNX, for other numbers and lengths of rows than they were exported with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(exports[name])
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sharing.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "adapter").is_dir()
    ids_BL, length_B = torch.randint(0, 4, (5, 17)), torch.tensor([17, 9, 3, 1, 16])
    given = {"input_ids": ids_BL, "attention_mask": (torch.arange(17) < length_B[:, None]).long()}
    with torch.no_grad():
        expected = opened("AutoModelForMaskedLM", exports[name])(**given).logits
        close(names["program"].module()(**given).logits, expected)
    session = importlib.import_module("onnxruntime").InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {key: value.numpy() for key, value in given.items()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)


class Shared(TinyConv):
    """The backbone of tests/examples, with its file for transformers."""

    portable = Portable(ROOT / "tests/examples/modeling_tiny_conv.py", "TinyConv")


@torch.no_grad()
def test_a_backbone_from_outside_may_bring_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    monkeypatch.setitem(MODELS, "tiny-conv", Shared)
    network = Network(Shared(Shared.Config.model_validate({"channels": 10})), heads={}).eval()
    folder, (ids_BL, mask_BL) = export(tmp_path / "tiny", network), rows()
    expected = network(ids_BL.to(torch.uint8), length_B=mask_BL.sum(1)).logits_BLV
    found = opened("AutoModelForMaskedLM", folder)(ids_BL, attention_mask=mask_BL).logits
    close(found[mask_BL.bool()], expected[mask_BL.bool()])
    assert torch.equal(
        load_model(str(folder))(ids_BL.to(torch.uint8), length_B=mask_BL.sum(1)).logits_BLV, expected
    )
    assert warned == []
