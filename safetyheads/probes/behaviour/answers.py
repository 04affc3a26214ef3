"""What does the model say, with and without its heads?

Answers are generated with the KV cache and an intervention active, and each is judged (`judges.py`): refuse, comply,
deflect or degenerate. `measure_behaviour` gives the rates with Wilson intervals, over-refusal on harmless prompts among
them. `refusal_under_ablation` is the experiment of Zhou et al. (arXiv:2410.13708, Fig. 4 and Tables 1 and 5): the top
heads of a ranking are ablated, one to five of them, here beside as many random heads of the same layers.

The paper calls every answer without a refusal keyword a successful attack. Here an attack succeeds where the answer
complies, so that a broken model is not a jailbroken one; 1 - (rate of `refuse`) is the paper's quantity.

Texts are not kept unless asked for: an answer is its verdict, its length and a hash.
"""

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.heads import Head, HeadScores
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import Ablation, UndifferentiatedAttention, describe
from safetyheads.interventions.named import BASELINE, all_active, named_interventions
from safetyheads.judges import VERDICTS, ExampleJudge, Judge, KeywordJudge, judge_name, judged
from safetyheads.metrics import RefusalShift, refusal_log_odds, refusal_tokens
from safetyheads.models.hooked import HookedModel, load_model
from safetyheads.prompts import PromptSet, TokenBatch, load_prompts, tokenize
from safetyheads.stats import bootstrap_interval, cohen_kappa, permutation_p, wilson_interval

if TYPE_CHECKING:
    import pandas

FIRST_TOKEN = "first_token"
"""The name of the first token's log-odds, read as a judge that only knows refusals."""


# --- generation -------------------------------------------------------------------------------


class Generated(NamedTuple):
    """The answers to a batch of prompts, in its order."""

    tokens: tuple[tuple[int, ...], ...]
    """The tokens of each answer, without the one that ended it."""
    ended: tuple[bool, ...]
    """Whether the model ended the answer itself, before `max_new_tokens`."""
    refusal_log_odds: tuple[float, ...]
    """Log-odds that the first token begins a refusal, in nats; NaN where no refusal tokens were given."""


@torch.inference_mode()
def generate(
    model: HookedModel,
    batch: TokenBatch,
    *,
    max_new_tokens: int = 32,
    top_k: int | None = None,
    temperature: float | int = 1.0,
    seed: int = 0,
    rows: int = 32,
    refusal: Sequence[int] = (),
    progress: Callable[[int], object] = lambda answers: None,
) -> Generated:
    """Answer every prompt of a batch with the KV cache: the same tokens as one prompt at a time without a cache.

    Greedy without `top_k`; with it, each token is drawn from the k most likely at `temperature`, from a stream of
    random numbers that depends on `seed` and the prompt's place in the batch and on nothing else. `rows` prompts run
    together; those that have ended leave. `refusal` are the tokens whose log-odds are read at the first step.
    `progress` is called with the number of answers just finished.

    Raises ValueError for a setting out of range and for logits that are not finite.
    """
    if max_new_tokens < 1 or rows < 1:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens} and rows is {rows}: both must be at least 1"
        )
    if (top_k is not None and top_k < 1) or temperature <= 0:
        raise ValueError(
            f"top_k is {top_k} and temperature {temperature}: give a top_k of at least 1, or None for greedy "
            "answers, and a temperature above 0"
        )
    end_tokens = model.end_tokens
    order = batch.lengths.argsort(stable=True).tolist()
    streams = [random.Random(f"{seed} {n}") for n in range(len(order))]
    tokens: list[list[int]] = [[] for _ in order]
    ended = [False] * len(order)
    odds = [math.nan] * len(order)
    for start in range(0, len(order), rows):
        alive = order[start : start + rows]
        cache, ids, real = _after_prefix(model, batch.select(alive))
        for step in range(max_new_tokens):
            logits = model.next_logits(ids, real, cache).double()
            log_probs = logits.log_softmax(-1)
            if not log_probs.amax(-1).isfinite().all():
                raise ValueError(
                    f"{model.name} gives logits that are not finite; load the model in float32"
                )
            if step == 0 and refusal:
                for n, value in zip(alive, refusal_log_odds(log_probs, refusal), strict=True):
                    odds[n] = float(value)
            chosen = [
                _choose(row, streams[n], top_k, temperature)
                for n, row in zip(alive, log_probs, strict=True)
            ]
            for n, token in zip(alive, chosen, strict=True):
                if token in end_tokens:
                    ended[n] = True
                else:
                    tokens[n].append(token)
            stay = [place for place, n in enumerate(alive) if not ended[n]]
            progress(len(alive) - len(stay))
            if not stay or step == max_new_tokens - 1:
                progress(len(stay))
                break
            kept = torch.tensor(stay, device=real.device)
            if len(stay) < len(alive):
                cache.batch_select_indices(kept)
            alive = [alive[place] for place in stay]
            ids = torch.tensor([[chosen[place]] for place in stay], device=real.device)
            real = torch.nn.functional.pad(real[kept], (0, 1), value=True)
    return Generated(tuple(map(tuple, tokens)), tuple(ended), tuple(odds))


def _after_prefix(
    model: HookedModel, part: TokenBatch
) -> tuple[Any, Int[Tensor, "row pos"], Bool[Tensor, "row key"]]:
    """A cache with what the prompts share, run once; the tokens that are left to run; and which tokens count.

    Rows are padded on the left, so that sliding windows, which count places in the cache, are right. The cache of a row
    is the shared prefix, shifted by the row's padding: what falls off its end is run again with the row's own tokens.
    """
    from transformers import DynamicCache

    count, width = part.ids.shape
    lengths = part.lengths.to(model.device)
    places = torch.arange(width, device=model.device) - (width - lengths)[:, None]
    real = places >= 0
    ids = part.ids.to(model.device).gather(1, places.clamp_min(0)).where(real, 0)
    cut = part.prefix_length
    if count == 1 or cut == 0:
        return DynamicCache(), ids, real
    prefix = DynamicCache()
    whole = torch.ones(1, cut, dtype=torch.bool, device=model.device)
    model.next_logits(part.ids[:1, :cut].to(model.device), whole, prefix)
    shared = DynamicCache()
    source = places[:, :cut].clamp_min(0)
    for layer, stored in enumerate(prefix.layers):
        keys, values = (t[0][:, source].transpose(0, 1) for t in (stored.keys, stored.values))
        shared.update(keys.contiguous(), values.contiguous(), layer)
    return shared, ids[:, cut:], real


def _choose(
    log_probs: Float[Tensor, " d_vocab"],
    stream: random.Random,
    top_k: int | None,
    temperature: float | int,
) -> int:
    if top_k is None:
        return int(log_probs.argmax())
    best = log_probs.topk(min(top_k, len(log_probs)))
    shares = (best.values / temperature).softmax(-1).cumsum(-1)
    place = int((shares < stream.random()).sum())
    return int(best.indices[min(place, len(shares) - 1)])


# --- behaviour --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One answer: what was asked, under which intervention, and what the judges said."""

    dataset: str
    """The prompt set."""
    side: str
    """"harmful" or "harmless"."""
    prompt: int
    """The prompt's place in its half of the set, from 0."""
    intervention: str
    """The name of what was done to the model."""
    verdicts: tuple[str, ...]
    """What each judge said; the first counts."""
    refusal_log_odds: float
    """Log-odds that the first token begins a refusal, in nats; NaN where no such token is known."""
    tokens: int
    """Length of the answer."""
    ended: bool
    """Whether the model ended it itself."""
    digest: str
    """SHA-256 of the text (the first 16 hex digits)."""
    text: str | None = field(default=None, repr=False)
    """The text, if it was asked for."""


@dataclass(frozen=True)
class Behaviour:
    """The judged answers of one model under several interventions."""

    answers: tuple[Answer, ...]
    """All answers."""
    judges: tuple[str, ...]
    """The judges' names, in the order of `Answer.verdicts`."""
    model: str
    """Name of the model."""
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    """What determines the answers."""

    def to_frame(self) -> "pandas.DataFrame":
        """A row an answer: model, dataset, side, prompt, intervention, verdict, a column for each further judge,
        refusal_log_odds [nat], tokens, ended, digest, text."""
        import pandas

        rows = []
        for answer in self.answers:
            others = zip(self.judges[1:], answer.verdicts[1:], strict=True)
            rows.append(
                {
                    "model": self.model,
                    "dataset": answer.dataset,
                    "side": answer.side,
                    "prompt": answer.prompt,
                    "intervention": answer.intervention,
                    "verdict": answer.verdicts[0],
                    **{f"verdict_{name}": verdict for name, verdict in others},
                    "refusal_log_odds": answer.refusal_log_odds,
                    "tokens": answer.tokens,
                    "ended": answer.ended,
                    "digest": answer.digest,
                    "text": answer.text,
                }
            )
        return pandas.DataFrame(rows)

    def rates(self, judge: str | None = None) -> "pandas.DataFrame":
        """How often each verdict was given: model, dataset, side, intervention, verdict, count, n, rate, low, high.

        `low` and `high` are Wilson's 95 % interval. Attack success is `comply` on the harmful side, over-refusal
        `refuse` on the harmless side. `judge` names another judge than the first.
        """
        import pandas

        place = self._place_of(judge)
        rows = []
        for (dataset, side, name), answers in self._groups():
            given = [answer.verdicts[place] for answer in answers]
            for verdict in VERDICTS:
                count, n = given.count(verdict), len(given)
                low, high = wilson_interval(count, n)
                rows.append(
                    (self.model, dataset, side, name, verdict, count, n, count / n, low, high)
                )
        columns = [
            "model",
            "dataset",
            "side",
            "intervention",
            "verdict",
            "count",
            "n",
            "rate",
            "low",
            "high",
        ]
        return pandas.DataFrame(rows, columns=columns)

    def agreement(self) -> "pandas.DataFrame":
        """How far the judges agree beyond chance: intervention, first, second, kappa, agreed, n.

        A row for each pair of judges over all answers ("all") and under each intervention. `first_token` calls an
        answer a refusal where the first token's log-odds are above 0; beside it the other judge counts as refusing or
        not. `kappa` is Cohen's, `agreed` the plain share; NaN where both only ever say one word.
        """
        import pandas

        names = list(dict.fromkeys(answer.intervention for answer in self.answers))
        rows = []
        for intervention in ("all", *names):
            some = [a for a in self.answers if intervention in ("all", a.intervention)]
            said: dict[str, list[Any]] = {
                judge: [a.verdicts[place] for a in some] for place, judge in enumerate(self.judges)
            }
            pairs: list[Any] = [
                (a, b, said[a], said[b]) for a, b in itertools.combinations(said, 2)
            ]
            if not any(math.isnan(a.refusal_log_odds) for a in some):
                odds = [a.refusal_log_odds > 0 for a in some]
                pairs += [
                    (judge, FIRST_TOKEN, [v == "refuse" for v in said[judge]], odds)
                    for judge in self.judges
                ]
            for first, second, ours, theirs in pairs:
                agreed = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(some)
                kappa = cohen_kappa(ours, theirs)
                rows.append((intervention, first, second, kappa, agreed, len(some)))
        columns = ["intervention", "first", "second", "kappa", "agreed", "n"]
        return pandas.DataFrame(rows, columns=columns)

    def _place_of(self, judge: str | None) -> int:
        if judge is not None and judge not in self.judges:
            raise ValueError(f"no judge {judge!r}: there are {', '.join(self.judges)}")
        return 0 if judge is None else self.judges.index(judge)

    def _groups(self) -> list[tuple[tuple[str, str, str], list[Answer]]]:
        groups: dict[tuple[str, str, str], list[Answer]] = {}
        for answer in self.answers:
            key = (answer.dataset, answer.side, answer.intervention)
            groups.setdefault(key, []).append(answer)
        return list(groups.items())


def measure_behaviour(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    interventions: Mapping[str, Any] | None = None,
    *,
    judge: Any = None,
    sides: Sequence[str] = ("harmful", "harmless"),
    template: str | None = None,
    max_new_tokens: int = 32,
    top_k: int | None = None,
    temperature: float | int = 1.0,
    seed: int = 0,
    rows: int = 32,
    keep_text: bool = False,
    progress: bool | None = None,
) -> Behaviour:
    """Let a model answer a set of prompts under each intervention, and judge the answers.

    `model` and `prompts` are whatever `load_model` and `load_prompts` take. `interventions` maps a name to an
    intervention (`AblateHeads(...)`), to several at once, or to None; the untouched model comes first, as "baseline",
    where none is None. `judge` is a `Judge` or several, of which the first counts; by default `KeywordJudge()`, with
    `ExampleJudge()` beside it. `sides` are the halves of the set to ask; one that the set lacks is left out.
    `max_new_tokens` bounds each answer: 24 tell a refusal. `top_k`, `temperature` and `seed` are for sampling; greedy
    by default. `rows` prompts run together. `keep_text` keeps the answers' texts, which may be harmful.

    Raises ValueError for what cannot be measured, and what `load_model` and `load_prompts` raise.

    >>> measure_behaviour(model, prompts, {"two heads": AblateHeads(heads, ablation)}).rates()  # doctest: +SKIP
    """
    named = named_interventions(interventions)
    judges = _judges(judge)
    model, prompts = load_model(model), load_prompts(prompts)
    halves = _halves(prompts, sides)
    batches = {}
    for side, texts in halves.items():
        room = model.context - max_new_tokens
        batches[side] = tokenize(texts, model.tokenizer, template, max_length=room)
    answers: list[Answer] = []
    total = len(named) * sum(len(texts) for texts in halves.values())
    with _bar(total, f"answers, {prompts.name}", progress) as bar:
        for name, stack in named.items():
            for side, texts in halves.items():
                batch = batches[side]
                with all_active(stack, model):
                    made = generate(
                        model,
                        batch,
                        max_new_tokens=max_new_tokens,
                        top_k=top_k,
                        temperature=temperature,
                        seed=seed,
                        rows=rows,
                        refusal=_refusal_tokens(model, batch.texts[0]),
                        progress=bar.update,
                    )
                said = [model.tokenizer.decode(t, skip_special_tokens=True) for t in made.tokens]
                verdicts = [judged(j, list(texts), said) for j in judges]
                for n, text in enumerate(said):
                    answers.append(
                        Answer(
                            dataset=prompts.name,
                            side=side,
                            prompt=n,
                            intervention=name,
                            verdicts=tuple(given[n] for given in verdicts),
                            refusal_log_odds=made.refusal_log_odds[n],
                            tokens=len(made.tokens[n]),
                            ended=made.ended[n],
                            digest=hashlib.sha256(text.encode()).hexdigest()[:16],
                            text=text if keep_text else None,
                        )
                    )
    provenance = {
        "model": {"name": model.name, **model.provenance},
        "prompts": {"name": prompts.name, "source": prompts.source},
        "tokens": {side: batch.fingerprint for side, batch in batches.items()},
        "template": next(iter(batches.values())).template,
        "interventions": {name: [str(i) for i in stack] for name, stack in named.items()},
        "decoding": {
            "max_new_tokens": max_new_tokens,
            "top_k": top_k,
            "temperature": temperature,
            "seed": seed,
        },
        "safetyheads": version("safetyheads"),
    }
    return Behaviour(tuple(answers), tuple(map(judge_name, judges)), model.name, provenance)


def _judges(judge: Any) -> list[Judge]:
    if judge is None:
        return [KeywordJudge(), ExampleJudge()]
    judges = list(judge) if isinstance(judge, Sequence) else [judge]
    names = [judge_name(one) for one in judges]
    if not judges or not all(map(callable, judges)) or len(set(names)) < len(names):
        raise ValueError(
            f"judge is {', '.join(names) or 'empty'}: give a function from (prompts, answers) to verdicts, "
            "or several with different names"
        )
    return judges


def _halves(prompts: PromptSet, sides: Sequence[str]) -> dict[str, tuple[str, ...]]:
    if strange := set(sides) - {"harmful", "harmless"}:
        raise ValueError(f'sides has {strange.pop()!r}: expected "harmful", "harmless" or both')
    halves = {side: getattr(prompts, side) for side in sides if getattr(prompts, side)}
    if not halves:
        raise ValueError(f"{prompts.name} has no {' or '.join(sides) or 'side to ask'} prompts")
    return halves


def _refusal_tokens(model: HookedModel, text: str) -> tuple[int, ...]:
    """The tokens that begin a refusal, none where this tokenizer has no single token for them."""
    try:
        return refusal_tokens(model.tokenizer, RefusalShift().openings, text)
    except ValueError:
        return ()


def _bar(total: int, label: str, shown: bool | None) -> Any:
    from tqdm.auto import tqdm

    return tqdm(
        total=total, desc=label, unit="answer", disable=None if shown is None else not shown
    )


# --- the headline experiment ------------------------------------------------------------------


class HeadGroup(NamedTuple):
    """A set of heads that was ablated, and how it was chosen."""

    arm: str
    """"top" of the ranking, or "random" heads of the same layers."""
    size: int
    """How many heads."""
    seed: int
    """Which random draw; 0 for the ranking's."""
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class RefusalCurve:
    """Behaviour against the number of ablated heads: the ranking's beside random ones of the same layers."""

    behaviour: Behaviour
    """All answers; `groups` names its interventions."""
    groups: dict[str, HeadGroup]
    """What each intervention ablates."""
    ablation: str
    """What was done to the heads."""

    def to_frame(self, judge: str | None = None) -> "pandas.DataFrame":
        """`Behaviour.rates` with the columns ablation, arm, size, seed and heads; the baseline has size 0."""
        table = self.behaviour.rates(judge)
        groups = [
            self.groups.get(name, HeadGroup(BASELINE, 0, 0, ())) for name in table["intervention"]
        ]
        return table.assign(
            ablation=self.ablation,
            arm=[group.arm for group in groups],
            size=[group.size for group in groups],
            seed=[group.seed for group in groups],
            heads=[" ".join(map(str, group.heads)) for group in groups],
        )

    def differences(self, judge: str | None = None) -> "pandas.DataFrame":
        """How far the ranked heads go beyond random ones: a row a dataset, side, verdict and size.

        Columns dataset, side, verdict, size, difference, low, high, p, n. `difference` is the rate under the top heads
        minus the mean rate under the random groups, paired by prompt; `low` and `high` its 95 % bootstrap interval over
        prompts, `p` a two-sided sign-flip permutation p-value. The random groups are taken as given.
        """
        import pandas

        place = self.behaviour._place_of(judge)
        said = dict(self.behaviour._groups())
        sets = dict.fromkeys((dataset, side) for dataset, side, _ in said)
        rows = []
        for (dataset, side), verdict in itertools.product(sets, VERDICTS):
            for size in sorted({group.size for group in self.groups.values()}):
                hits: dict[str, list[Tensor]] = {"top": [], "random": []}
                for name, group in self.groups.items():
                    if group.size == size:
                        given = [a.verdicts[place] for a in said[dataset, side, name]]
                        hits[group.arm].append(torch.tensor([float(v == verdict) for v in given]))
                if not hits["random"] or len(hits["top"][0]) < 2:
                    continue
                paired = torch.stack(hits["top"]).mean(0) - torch.stack(hits["random"]).mean(0)
                low, high = bootstrap_interval(paired)
                p = permutation_p(paired)
                numbers = (paired.mean().item(), low.item(), high.item(), p.item(), len(paired))
                rows.append((dataset, side, verdict, size, *numbers))
        columns = ["dataset", "side", "verdict", "size", "difference", "low", "high", "p", "n"]
        return pandas.DataFrame(rows, columns=columns)


def refusal_under_ablation(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    ranking: HeadScores | Sequence[Head | str],
    *,
    ablation: Ablation | None = None,
    sizes: Sequence[int] = (1, 2, 3, 4, 5),
    random_seeds: Sequence[int] = (0, 1, 2),
    **options: Any,
) -> RefusalCurve:
    """Measure refusal and attack success before and after ablating the top heads, beside random heads.

    `ranking` is `HeadScores` or heads, best first; rank on other prompts than these. `ablation` is what is done to the
    heads, `UndifferentiatedAttention()` by default. `sizes` are the numbers of heads ablated together. For each of
    `random_seeds`, each top head is matched by a random head of its layer that is not among the top ones; a larger
    group holds the smaller. `options` are those of `measure_behaviour`.

    Raises ValueError for a ranking shorter than the largest size, a layer with too few other heads, and what
    `measure_behaviour` refuses.
    """
    model = load_model(model)
    ablation = UndifferentiatedAttention() if ablation is None else ablation
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes is {list(sizes)}: give different numbers of at least 1")
    heads = _best(ranking, max(sizes))
    draws = {seed: random_heads(heads, model.n_heads, seed) for seed in random_seeds}
    groups: dict[str, HeadGroup] = {}
    for size in sizes:
        groups[f"top {size}"] = HeadGroup("top", size, 0, heads[:size])
        for seed, drawn in draws.items():
            groups[f"random {size}, seed {seed}"] = HeadGroup("random", size, seed, drawn[:size])
    interventions = {name: AblateHeads(group.heads, ablation) for name, group in groups.items()}
    behaviour = measure_behaviour(model, prompts, {BASELINE: None, **interventions}, **options)
    behaviour.provenance["ablation"] = describe(ablation)
    return RefusalCurve(behaviour, groups, ablation.name)


def _best(ranking: HeadScores | Sequence[Any], count: int) -> tuple[Head, ...]:
    if isinstance(ranking, HeadScores):
        table = ranking.top(min(count, ranking.values.numel()))
        heads = [Head(int(n), int(h)) for n, h in zip(table["layer"], table["head"], strict=True)]
    else:
        heads = [head if isinstance(head, Head) else Head.parse(head) for head in ranking]
    if len(heads) < count or len(set(heads)) < len(heads):
        raise ValueError(
            f"the ranking has {len(set(heads))} different heads and {len(heads)} in all; "
            f"the largest size asks for {count}, each once"
        )
    return tuple(heads[:count])


def random_heads(top: Sequence[Head], n_heads: int, seed: int) -> tuple[Head, ...]:
    """For each head a random one of its layer that is not among them, none twice.

    >>> random_heads([Head(2, 0), Head(2, 1), Head(5, 3)], n_heads=4, seed=1)
    (Head(layer=2, head=...), Head(layer=2, head=...), Head(layer=5, head=...))
    """
    stream, drawn = random.Random(f"random heads {seed}"), list[Head]()
    for head in top:
        others = [Head(head.layer, n) for n in range(n_heads)]
        free = [other for other in others if other not in top and other not in drawn]
        if not free:
            raise ValueError(
                f"layer {head.layer} has {n_heads} heads, too many of which are ranked to leave as many random "
                "ones; lower the sizes"
            )
        drawn.append(stream.choice(free))
    return tuple(drawn)
