# SPDX-License-Identifier: Apache-2.0
"""A DNA encoder in transformers: hidden states of letters, logits of the four bases, labels of sequences.

A backbone is a subclass of ``DnaModel``; its two other classes name it.

Shapes: B rows, L letters, P summaries, D hidden, V bases, C labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput

from .configuration_dna import BASES, PAD, TOKENS, DnaConfig


@dataclass
class DnaModelOutput(ModelOutput):
    """What an encoder gives.

    Attributes:
        last_hidden_state: [B, L, D], of each letter; at padding it means nothing.
        pooler_output: fp32 [B, D], the mean over the letters.
        hidden_states: [B, L, D] of the input and of each layer; the last is ``last_hidden_state``.
        summary_state: [B, P, D], what the backbone says of the whole row.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    summary_state: Tensor | None = None


class DnaPreTrainedModel(PreTrainedModel):
    config_class = DnaConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # losses are means over a batch
    # The nucleotide head lies in every export, and AutoModelForMaskedLM alone reads it.
    _keys_to_ignore_on_load_unexpected: list[str] | None = [r"^nucleotide\."]

    def _init_weights(self, module: nn.Module) -> None:
        """As torch does."""
        reset = getattr(module, "reset_parameters", None)
        if reset:
            reset()


class DnaModel(DnaPreTrainedModel):
    """Tokens [B, L] -> ``DnaModelOutput``. A subclass has ``read``."""

    _gradient_checkpointing_func: Callable[..., Tensor]  # transformers sets it, with the flag below

    def __init__(self, config: DnaConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False

    def read(
        self, codes_BL: Tensor, length_B: Tensor, keep: Callable[[Tensor], None]
    ) -> tuple[Tensor, Tensor]:
        """(summaries [B, P, D], letters [B, L, D]).

        Args:
            codes_BL: int64.
            length_B: letters of each row; those behind are padding, on which nothing may depend.
            keep: called with the letters [B, L, D] of the input and of each layer, in order.
        """
        raise NotImplementedError

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        """``layer(x)``, which is computed again in the backward under gradient checkpointing."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(layer.__call__, x)
        computed: Tensor = layer(x)
        return computed

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DnaModelOutput | tuple[Tensor, ...]:
        """The hidden states of ``input_ids`` [B, L].

        ``attention_mask`` [B, L] is 1 at letters and 0 at the padding behind them. Without it, [PAD] tokens
        are padding.

        Raises:
            ValueError: padding does not stand behind the letters, a row has no letter, a token is none, or
                what was asked for does not exist.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("give input_ids: the encoder has no embeddings that inputs_embeds could replace")
        if output_attentions:
            raise ValueError("output_attentions was asked for, and the encoder has no attention")
        length_B = row_lengths(input_ids, attention_mask)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states: list[Tensor] = []
        summary_BPD, letters_BLD = self.read(
            input_ids.long(), length_B, states.append if wanted else lambda letters_BLD: None
        )
        found = DnaModelOutput(
            letters_BLD, mean_pool(letters_BLD, length_B), tuple(states) if wanted else None, summary_BPD
        )
        return _returned(found, return_dict, self.config)


class DnaForMaskedLM(DnaPreTrainedModel):
    """Logits of A, C, G, T for each letter: [B, L, 4]. The other tokens are never predicted."""

    backbone_class: type[DnaModel]
    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, config: DnaConfig) -> None:
        super().__init__(config)
        self.backbone = self.backbone_class(config)
        self.nucleotide = nn.Linear(config.hidden_size, BASES)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """``logits`` fp32 [B, L, 4]. ``loss`` is the mean cross entropy where ``labels`` [B, L] are 0 to 3;
        other labels (-100, and N and the special tokens) do not count, and without any it is 0."""
        outputs = self.backbone(
            input_ids, attention_mask, inputs_embeds, output_attentions, output_hidden_states, True
        )
        logits_BLV = self.nucleotide(outputs.last_hidden_state).float()
        loss = None
        if labels is not None:
            is_base_BL = (labels >= 0) & (labels < BASES)
            target_BL = torch.where(is_base_BL, labels, -100)
            total = functional.cross_entropy(logits_BLV.transpose(1, 2), target_BL, reduction="sum")
            loss = total / is_base_BL.sum().clamp(min=1)
        found = MaskedLMOutput(loss=loss, logits=logits_BLV, hidden_states=outputs.hidden_states)
        return _returned(found, return_dict, self.config)


class DnaForSequenceClassification(DnaPreTrainedModel):
    """Logits [B, C] of a linear map of the mean over the letters. ``config.num_labels`` is C."""

    backbone_class: type[DnaModel]

    def __init__(self, config: DnaConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = self.backbone_class(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """``logits`` fp32 [B, C], and ``loss`` if there are ``labels``.

        ``config.problem_type`` decides the loss: regression (squared error; labels [B] or [B, C]),
        single_label_classification (cross entropy; labels int [B]) or multi_label_classification (binary
        cross entropy; labels [B, C]). Without it, one label is a regression, int labels are classes, and
        others are of many labels.
        """
        outputs = self.backbone(
            input_ids, attention_mask, inputs_embeds, output_attentions, output_hidden_states, True
        )
        pooled_BD = outputs.pooler_output.to(outputs.last_hidden_state.dtype)
        logits_BC = self.classifier(pooled_BD).float()
        loss = None if labels is None else self._loss(logits_BC, labels)
        found = SequenceClassifierOutput(loss=loss, logits=logits_BC, hidden_states=outputs.hidden_states)
        return _returned(found, return_dict, self.config)

    def _loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        problem = self.config.problem_type
        if problem is None:
            is_class = not labels.is_floating_point()
            problem = "single_label_classification" if is_class else "multi_label_classification"
            problem = "regression" if self.num_labels == 1 else problem
        if problem == "single_label_classification":
            return functional.cross_entropy(logits_BC, labels.long().view(-1))
        loss = functional.mse_loss if problem == "regression" else functional.binary_cross_entropy_with_logits
        return loss(logits_BC, labels.to(logits_BC.dtype).view(logits_BC.shape))


def row_lengths(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """int64 [B]: the letters of each row. ValueError: see ``DnaModel.forward``; not while it is traced."""
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)} and input_ids {list(input_ids.shape)}; "
            "both must be [rows, letters]"
        )
    letter_BL = input_ids != PAD if attention_mask is None else attention_mask.bool()
    length_B = letter_BL.sum(1)
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        _check(input_ids, letter_BL, length_B)
    return length_B


def _check(input_ids: Tensor, letter_BL: Tensor, length_B: Tensor) -> None:
    is_row_B = (letter_BL[:, 1:] <= letter_BL[:, :-1]).all(1) & (length_B > 0)
    is_token_BL = (input_ids >= 0) & (input_ids < TOKENS)
    if bool(is_row_B.all() & is_token_BL.all()):  # one wait for the device
        return
    if not bool(is_token_BL.all()):
        other = int(input_ids[~is_token_BL][0])
        raise ValueError(f"input_ids has {other}; tokens are 0 to {TOKENS - 1}")
    row = int((~is_row_B).nonzero()[0])
    if not int(length_B[row]):
        raise ValueError(f"row {row} has no letter")
    raise ValueError(
        f"row {row} has padding before a letter; padding must stand behind the letters "
        "(tokenizer.padding_side is right)"
    )


def is_letter(length_B: Tensor, places: int) -> Tensor:
    """bool [B, places]: the first ``length_B`` of each row."""
    return torch.arange(places, device=length_B.device) < length_B[:, None]


def mean_pool(letters_BLD: Tensor, length_B: Tensor) -> Tensor:
    """fp32 [B, D]: the mean over each row's letters."""
    padding_BL1 = ~is_letter(length_B, letters_BLD.shape[1])[..., None]
    return letters_BLD.float().masked_fill(padding_BL1, 0).sum(1) / length_B[:, None]


def one_hot(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., 8]: what the first layer reads of each token."""
    return (codes[..., None] == torch.arange(TOKENS, device=codes.device)).to(dtype)


def _returned(found: ModelOutput, return_dict: bool | None, config: DnaConfig) -> ModelOutput:
    as_dict = config.return_dict if return_dict is None else return_dict
    return found if as_dict else found.to_tuple()
