"""What is trained at which rate: AdamW's groups, layer-wise decay, frozen and thawed parts."""

from collections.abc import Sequence

import torch
from torch import nn

from trainer.core import schedules
from trainer.evaluation.tasks.fitting.recipe import Finetune
from trainer.models.backbone import Backbone


def depths(backbone: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Each parameter with the depth of its layer.

    The layers are those of the backbone's longest list of modules, from 1 on; what is registered before it
    has depth 0, what is registered after it the depth of the last layer.
    """
    lists = {name: each for name, each in backbone.named_modules() if isinstance(each, nn.ModuleList)}
    longest = max(lists, key=lambda name: len(lists[name]), default="")
    prefix, found, depth = f"{longest}.", [], 0
    for name, parameter in backbone.named_parameters():
        if longest and name.startswith(prefix):
            depth = 1 + int(name[len(prefix) :].split(".")[0])
        found.append((parameter, depth))
    return found


class Optimiser:
    """AdamW over a backbone and its heads, with warm-up and a cosine to 0.

    ``pretrained``: whether the options for pretrained weights count.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Sequence[nn.Module],
        *,
        config: Finetune,
        peak: float,
        steps: int,
        pretrained: bool,
    ) -> None:
        self._config, self._peak, self._steps, self._step = config, peak, steps, 0
        self._frozen = min(config.frozen_steps, steps) if pretrained else 0
        factor, decay = (config.backbone_lr_factor, config.layer_decay) if pretrained else (1.0, 1.0)
        placed = depths(backbone)
        top = max(depth for _, depth in placed)
        groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
        for parameter, depth in placed:
            key = (factor * decay ** (top - depth), parameter.ndim >= 2, True)
            groups.setdefault(key, []).append(parameter)
        for head in heads:
            for parameter in head.parameters():
                groups.setdefault((1.0, parameter.ndim >= 2, False), []).append(parameter)
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "weight_decay": config.weight_decay if matrices else 0.0,
                    "factor": factor,
                    "thaws": thaws,
                }
                for (factor, matrices, thaws), parameters in groups.items()
            ],
            lr=peak,
            fused=True,
        )
        self._parameters = [parameter for group in groups.values() for parameter in group]

    @property
    def frozen(self) -> bool:
        """Whether the backbone stands still in the next step."""
        return self._step < self._frozen

    def zero_grad(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One step with the gradients that there are."""
        self._step += 1
        for group in self._adamw.param_groups:
            group["lr"] = group["factor"] * self._rate(thaws=group["thaws"])
        nn.utils.clip_grad_norm_(self._parameters, self._config.grad_clip)
        self._adamw.step()

    def _rate(self, *, thaws: bool) -> float:
        """Of this step; a part that thaws then warms up once more, and joins the cosine."""
        warmup = round(self._steps * self._config.warmup)
        rate = schedules.learning_rate(
            self._step,
            peak=self._peak,
            total_steps=self._steps,
            warmup_fraction=self._config.warmup,
            final_fraction=0,
        )
        if thaws and self._frozen and warmup:
            rate *= min(1.0, max(0, self._step - self._frozen) / warmup)
        return rate
