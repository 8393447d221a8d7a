"""Losses and gradients against TRL's own trainers, on the same tiny model, weights and batch."""

from types import SimpleNamespace

import numpy as np
import pytest

from kitchen.losses.distillation import get_distill_loss
from kitchen.losses.policy import (
    ADVANTAGES,
    AGGREGATIONS,
    OBJECTIVES,
    clip_fraction,
    estimate_kl,
    get_objective,
    submit_objective,
)
from kitchen.losses.preference import PAIR_LOSSES, PairLogprobs, get_pair_loss, pairwise_loss
from kitchen.losses.token import as_custom_loss, dft, normalize_weights
from kitchen.losses.value import bradley_terry
from kitchen.train.preference import Pair, _estimate_kto_drift
from kitchen.types import AdamParams, Datum

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from kitchen.adapters.torch.client import TorchService  # noqa: E402

torch.set_num_threads(1)
LOSS, GRADIENT = 1e-5, 1e-4  # largest relative differences; that of a gradient in norm
WORDS, LONGEST = 96, 9


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folders with a reference, a policy that has moved away from it, and their tokenizer."""
    root = tmp_path_factory.mktemp("models")
    words = {"<pad>": 0, "</s>": 1} | {f"w{place}": place for place in range(2, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = LlamaConfig(
        vocab_size=WORDS,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        **sizes,
        **ends,
    )
    model = AutoModelForCausalLM.from_config(config)
    for name in ("reference", "policy"):
        model.save_pretrained(root / name)
        fast.save_pretrained(root / name)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.04 * torch.randn_like(weight))
    return root


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return TorchService(device="cpu", directory=tmp_path_factory.mktemp("states"))


@pytest.fixture(scope="module")
def client(home, service):
    return service.create_training_client(str(home / "policy"), None, 0)


@pytest.fixture(scope="module")
def reference(home, service):
    return service.create_sampling_client(str(home / "reference"))


def opened(folder):
    """Weights for TRL."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def trainer_of(home, name, rows, settings, **others):
    """One of TRL's trainers of the policy, ready to compute losses."""
    quiet = {
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    folder = home / "trl"
    settings = {"per_device_train_batch_size": len(rows), "output_dir": str(folder), **quiet, **settings}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(home / "policy")
    made = getattr(trl, f"{name}Trainer")(
        others.pop("model", None) or opened(home / "policy"),
        args=getattr(trl, f"{name}Config")(**settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        **others,
    )
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    return made


def theirs_of(trainer, *batches, **others):
    """TRL's loss and gradients by name, summed over micro-batches."""
    trainer.model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(trainer.model, dict(batch), **others)
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


def ours_of(client, *requests):
    """Kitchen's loss and gradients by name; the weights stay as they are."""
    loss = sum(request.result(60).loss_sum for request in requests)
    gradients = {name: one.clone() for name, one in client.learner.accumulated_gradient().items()}
    client.optim_step(AdamParams(learning_rate=0.0)).result(60)
    return loss, gradients


def agree(ours, theirs, share=1.0, value=True):
    """Assert equal losses and gradients; ours is `share` times theirs where a convention differs by a factor."""
    (loss, gradients), (wanted, others) = ours, theirs
    assert gradients.keys() == others.keys()
    apart = sum(float((one - share * others[name]).double().square().sum()) for name, one in gradients.items())
    size = share**2 * sum(float(one.double().square().sum()) for one in others.values())
    assert size > 0 and (apart / size) ** 0.5 <= GRADIENT, f"gradients are {(apart / size) ** 0.5:.3g} apart"
    if value:
        away = abs(loss - share * wanted) / max(1.0, abs(share * wanted))
        assert away <= LOSS, f"losses are {away:.3g} apart: {loss} and {share * wanted}"


def differ(ours, theirs):
    """Assert that a difference of convention is there indeed."""
    (_, gradients), (_, others) = ours, theirs
    apart = sum(float((one - others[name]).double().square().sum()) for name, one in gradients.items())
    assert apart > 1e-4 * sum(float(one.double().square().sum()) for one in others.values())


def as_datum(ids, attention, answer):
    """A row of one of TRL's batches without its padding."""
    real = attention.bool()
    return Datum.from_tokens(ids[real].tolist(), answer[real].tolist())


def beside(datum, reference):
    """The datum with the reference's log-probabilities."""
    found = reference.compute_logprobs([*datum.tokens.tolist(), int(datum.targets[-1])]).result(60)
    return datum.replace(reference_logprobs=found[1:])


def text(rng, longest=6):
    return " ".join(f"w{place}" for place in rng.integers(2, WORDS, int(rng.integers(1, longest + 1))))


# Supervised


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    return [{"prompt": text(rng) + " ", "completion": text(rng)} for _ in range(5)]


@pytest.mark.parametrize("name", ["nll", "dft"])
def test_sft(home, client, examples, name):
    "The mean over the trained tokens of the batch; also in two micro-batches, where TRL is told the number of all."
    trainer = trainer_of(home, "SFT", examples, {"loss_type": name})
    batch = next(iter(trainer.get_train_dataloader()))
    answers = (batch["labels"] != -100).long()
    rows = zip(batch["input_ids"], batch["attention_mask"], answers, strict=True)
    data = normalize_weights([as_datum(*row) for row in rows])

    def request(part):
        if name == "nll":
            return client.forward_backward(part, "cross_entropy")
        return client.forward_backward_custom(part, as_custom_loss(dft))

    ours = ours_of(client, request(data))
    agree(ours, theirs_of(trainer, batch))
    halves = [{name: values[part] for name, values in batch.items()} for part in (slice(0, 2), slice(2, None))]
    apart = theirs_of(trainer, *halves, num_items_in_batch=answers[:, 1:].sum())
    agree(ours, apart)
    agree(ours_of(client, request(data[:2]), request(data[2:])), apart)


# Preferences


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(1)
    return [{"prompt": text(rng) + " ", "chosen": text(rng), "rejected": text(rng)} for _ in range(5)]


@pytest.fixture(scope="module")
def dpo_batch(home, pairs):
    trainer = trainer_of(home, "DPO", pairs, {}, ref_model=opened(home / "reference"))
    return next(iter(trainer.get_train_dataloader()))


def by_turns(batch, reference):
    """Chosen and rejected datums by turns, from one of TRL's batches: all chosen ones first."""
    rows = zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True)
    data = [beside(as_datum(*row), reference) for row in rows]
    half = len(data) // 2
    return [datum for pair in zip(data[:half], data[half:], strict=True) for datum in pair]


DPO_CASES = {  # ours, its settings -> TRL's settings
    "dpo": ({"beta": 0.3}, {"loss_type": ["sigmoid"], "beta": 0.3}),
    "robust": ({"label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
    "hinge": ({}, {"loss_type": ["hinge"]}),
    "ipo_mean": ({}, {"loss_type": ["ipo"]}),
    "sigmoid_norm": ({"beta": 2.0}, {"loss_type": ["sigmoid_norm"], "beta": 2.0}),
    "exo_pair": ({"label_smoothing": 1e-3}, {"loss_type": ["exo_pair"], "label_smoothing": 1e-3}),
    "nca_pair": ({}, {"loss_type": ["nca_pair"]}),
    "bco_pair": ({}, {"loss_type": ["bco_pair"]}),
    "sppo_hard": ({}, {"loss_type": ["sppo_hard"]}),
    "apo_zero": ({}, {"loss_type": ["apo_zero"]}),
    "apo_down": ({}, {"loss_type": ["apo_down"]}),
    "discopop": ({}, {"loss_type": ["discopop"]}),
}


@pytest.mark.parametrize("name", DPO_CASES)
def test_dpo_and_its_variants(home, client, reference, pairs, dpo_batch, name):
    mine, settings = DPO_CASES[name]
    trainer = trainer_of(home, "DPO", pairs, settings, ref_model=opened(home / "reference"))
    theirs, data = theirs_of(trainer, dpo_batch), by_turns(dpo_batch, reference)
    loss = pairwise_loss(get_pair_loss(name, **mine), len(pairs))
    agree(ours_of(client, client.forward_backward_custom(data, loss)), theirs)
    parts = [client.forward_backward_custom(data[:4], loss), client.forward_backward_custom(data[4:], loss)]
    agree(ours_of(client, *parts), theirs)


def test_what_is_logged_about_preferences(home, client, reference, pairs, dpo_batch):
    trainer = trainer_of(home, "DPO", pairs, {"beta": 0.3}, ref_model=opened(home / "reference"))
    theirs_of(trainer, dpo_batch)
    loss = pairwise_loss(get_pair_loss("dpo", beta=0.3), len(pairs))
    found = client.forward_backward_custom(by_turns(dpo_batch, reference), loss).result(60).metrics
    client.optim_step(AdamParams(learning_rate=0.0)).result(60)
    names = {
        "accuracy": "rewards/accuracies", "chosen_reward": "rewards/chosen", "rejected_reward": "rewards/rejected",
        "margin": "rewards/margins", "chosen_logprob": "logps/chosen", "rejected_logprob": "logps/rejected",
    }  # fmt: skip
    for mine, name in names.items():
        (wanted,) = trainer._metrics["train"][name]
        assert found[f"{mine}:sum"] / found["pairs:sum"] == pytest.approx(wanted, rel=1e-4, abs=1e-5), name


def test_label_smoothing(home, client, reference, pairs, dpo_batch):
    "TRL's `sigmoid` looks at no label_smoothing, unlike `cdpo`; its `aot` does, and for a single pair it is `cdpo`."

    def theirs(kind, batch):
        settings = {"loss_type": [kind], "label_smoothing": 0.1}
        return theirs_of(trainer_of(home, "DPO", pairs, settings, ref_model=opened(home / "reference")), batch)

    def ours(batch, **given):
        data = by_turns(batch, reference)
        loss = pairwise_loss(get_pair_loss("cdpo", **given), len(data) // 2)
        return ours_of(client, client.forward_backward_custom(data, loss))

    agree(ours(dpo_batch, label_smoothing=0.0), theirs("sigmoid", dpo_batch))
    differ(ours(dpo_batch), theirs("sigmoid", dpo_batch))
    single = {name: values[[1, 1 + len(pairs)]] for name, values in dpo_batch.items()}
    agree(ours(single), theirs("aot", single))


def test_simpo_and_the_odds_of_orpo(pairs):
    "TRL's formulas on given means; its ORPO adds the likelihood of the prompt and the answer, ours that of the answer."
    cpo = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    orpo = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
    rng, place = np.random.default_rng(2), SimpleNamespace(device="cpu")
    lengths = [torch.tensor(rng.integers(1, 9, 4)) for _ in range(2)]
    sums = [torch.tensor(-rng.uniform(0.2, 3, 4) * one.numpy(), requires_grad=True) for one in lengths]
    means = [one / length for one, length in zip(sums, lengths, strict=True)]
    given = PairLogprobs(*sums, torch.zeros(4), torch.zeros(4), *lengths)
    about = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=1.0, label_smoothing=0.0, loss_type="simpo", accelerator=place
    )
    simpo = cpo.cpo_loss(about, *means)[0]
    about = SimpleNamespace(beta=0.1, accelerator=place)
    odds = -orpo.odds_ratio_loss(about, *means)[0].double()
    cases = {"simpo": simpo, "orpo": odds - means[0]}
    for name, theirs in cases.items():
        mine = get_pair_loss(name)(given)
        assert torch.allclose(mine, theirs, rtol=LOSS)
        slopes = [torch.autograd.grad(one.sum(), sums, retain_graph=True) for one in (mine, theirs)]
        for one, two in zip(*slopes, strict=True):
            assert float((one - two).norm()) <= GRADIENT * float(two.norm())


def test_kto(home, client, reference):
    "Pairs of as many wanted and unwanted answers: ours is a mean over pairs, TRL's one over answers, which is half of it."
    rng = np.random.default_rng(3)
    rows = [{"prompt": text(rng) + " ", "completion": text(rng), "label": place % 2 == 0} for place in range(6)]
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7, "beta": 0.4}
    trainer = trainer_of(home, "KTO", rows, weights, ref_model=opened(home / "reference"))
    batch = next(iter(trainer.get_train_dataloader()))
    names = ("input_ids", "attention_mask", "completion_mask")
    data = [as_datum(*row) for row in zip(*(batch[name] for name in names), strict=True)]
    wanted = [beside(datum, reference) for datum, label in zip(data, batch["label"], strict=True) if label]
    unwanted = [beside(datum, reference) for datum, label in zip(data, batch["label"], strict=True) if not label]
    others = [as_datum(*row) for row in zip(*(batch[f"KL_{name}"] for name in names), strict=True)]
    found = client.forward(others, "cross_entropy").result(60).loss_fn_outputs
    away = [
        np.where(datum.weights != 0, one["logprobs"] - datum.loss_fn_inputs["reference_logprobs"], 0).sum()
        for datum, one in zip([beside(datum, reference) for datum in others], found, strict=True)
    ]
    theirs, z = theirs_of(trainer, batch), max(0.0, float(np.mean(away)))
    assert z > 0 and z == pytest.approx(trainer._metrics["train"]["kl"][0], rel=1e-5)
    loss = get_pair_loss("kto", beta=0.4, desirable=1.3, undesirable=0.7, drift=z)
    turns = [datum for pair in zip(wanted, unwanted, strict=True) for datum in pair]
    agree(ours_of(client, client.forward_backward_custom(turns, pairwise_loss(loss, 3))), theirs, share=2.0)


def test_the_drift_of_kto(home, service, pairs, dpo_batch):
    "Ours is estimated on the chosen answers, each after the prompt of the pair before; TRL's on all answers of a batch."
    client = service.create_training_client(str(home / "reference"), None, 0)
    reference = service.create_sampling_client(str(home / "policy"))
    turns, mixed = by_turns(dpo_batch, reference), []
    mine = _estimate_kto_drift([Pair(*turns[start : start + 2]) for start in range(0, len(turns), 2)], client, reference)
    chosen = turns[::2]
    for one, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        prompt = one.tokens[: int(np.flatnonzero(one.weights)[0]) + 1]
        mixed.append((prompt.tolist(), other.targets[other.weights != 0].tolist()))
    rows = [{"prompt": "w2 ", "completion": "w3", "label": True}] * len(mixed)
    models = {"model": opened(home / "reference"), "ref_model": opened(home / "policy")}
    trainer = trainer_of(home, "KTO", rows, {}, **models)
    examples = [
        {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": answer, "label": True}
        for prompt, answer in mixed
    ]
    trainer.compute_loss(trainer.model, trainer.data_collator(examples))
    assert mine > 0 and mine == pytest.approx(trainer._metrics["train"]["kl"][0], rel=1e-5)


# Reward models


@pytest.mark.parametrize("centre", [None, 0.01])
@pytest.mark.parametrize("margin", [False, True])
def test_reward_model(home, pairs, centre, margin):
    "TRL puts a linear layer on the hidden state, we read log-odds of a token: the formula is compared on TRL's scores."
    torch.manual_seed(4)
    model = AutoModelForSequenceClassification.from_pretrained(home / "policy", num_labels=1, dtype=torch.float32)
    rows = [
        {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
        | ({"margin": 0.4} if margin else {})
        for row in pairs
    ]
    trainer = trainer_of(home, "Reward", rows, {"center_rewards_coefficient": centre}, model=model)
    batch = next(iter(trainer.get_train_dataloader()))
    wanted, others = theirs_of(trainer, batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    chosen, rejected = trainer.model(**inputs, use_cache=False).logits[:, 0].double().chunk(2)
    trainer.model.zero_grad()
    loss = bradley_terry(chosen, rejected, 0.4 if margin else 0.0, centre or 0.0).mean()
    loss.backward()
    agree(
        (loss.item(), {name: weight.grad for name, weight in trainer.model.named_parameters()}),
        (wanted, others),
    )


# Reinforcement learning


@pytest.fixture(scope="module")
def rollouts(home):
    """A batch as GRPOTrainer makes it: prompts padded on the left, answers on the right; a little off the policy."""
    rng, draws = np.random.default_rng(5), torch.Generator().manual_seed(5)
    prompts = [rng.integers(2, WORDS, int(rng.integers(1, 6))) for _ in range(6)]
    answers = [rng.integers(2, WORDS, int(rng.integers(2, LONGEST + 1))) for _ in range(6)]
    batch = {}
    for name, rows, side in (("prompt", prompts, 0), ("completion", answers, 1)):
        longest = max(map(len, rows))
        around = [(longest - len(row), 0) if side == 0 else (0, longest - len(row)) for row in rows]
        batch[f"{name}_ids"] = torch.tensor(
            np.stack([np.pad(row, pad) for row, pad in zip(rows, around, strict=True)])
        )
        ones = [np.pad(np.ones_like(row), pad) for row, pad in zip(rows, around, strict=True)]
        batch[f"{name}_mask"] = torch.tensor(np.stack(ones))
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        table = opened(home / "policy")(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    width = batch["completion_ids"].shape[1]
    found = table.gather(2, ids[:, 1:, None])[:, -width:, 0]
    apart = torch.tensor([0.3, 1e-4, 0.5, 0.0, 3e-4, 0.2])[:, None]
    batch["old_per_token_logps"] = found + apart * torch.randn(found.shape, generator=draws)
    batch["ref_per_token_logps"] = found + 0.4 * torch.randn(found.shape, generator=draws)
    batch["advantages"] = torch.randn(6, generator=draws)
    batch["num_items_in_batch"] = batch["completion_mask"].sum()
    return batch


def as_rollouts(batch):
    """The same as datums."""
    data = []
    for place in range(len(batch["prompt_ids"])):
        ids = [batch[f"{name}_ids"][place] for name in ("prompt", "completion")]
        masks = [batch[f"{name}_mask"][place] for name in ("prompt", "completion")]
        prompt, answer = (one[mask.bool()].tolist() for one, mask in zip(ids, masks, strict=True))
        datum = Datum.from_tokens([*prompt, *answer], [0] * len(prompt) + [1] * len(answer))
        acted, rows = datum.weights != 0, {}
        for mine, name in (
            ("logprobs", "old_per_token_logps"),
            ("reference_logprobs", "ref_per_token_logps"),
        ):
            rows[mine] = np.zeros(len(datum))
            rows[mine][acted] = batch[name][place][masks[1].bool()].numpy()
        data.append(datum.replace(advantages=float(batch["advantages"][place]) * datum.weights, **rows))
    return data


def optimised(client, batch, objective, losses=frozenset(), parts=(slice(None),), temperature=1.0):
    """Kitchen's loss and gradients of an optimizer step."""
    data = as_rollouts(batch)
    if temperature != 1:
        data = [datum.replace(temperatures=np.full(len(datum), temperature)) for datum in data]
    shares = AGGREGATIONS[objective.aggregation]([datum.weights for datum in data], LONGEST)
    data = [datum.replace(weights=share) for datum, share in zip(data, shares, strict=True)]
    return ours_of(client, *(submit_objective(client, data[part], objective, losses) for part in parts))


def grpo_trainer(home, settings):
    rows = [{"prompt": "w2 w3"}] * 6
    usual = {"num_generations": 2, "max_completion_length": LONGEST, "use_bias_correction_kl": False}
    return trainer_of(
        home, "GRPO", rows, usual | settings, reward_funcs=lambda completions, **_: [0.0] * len(completions)
    )


KL = {"kl": "loss", "kl_coefficient": 0.2}
GSPO = {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}
GRPO_CASES = {  # our objective and its changes -> TRL's settings
    "grpo": ("grpo", {}, {"loss_type": "grpo", "beta": 0.04}),
    "grpo without KL": ("grpo", {"kl_coefficient": 0.0}, {"loss_type": "grpo"}),
    "grpo, KL times ratio": ("grpo", {"kl_corrected": True}, {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": True}),
    "bnpo": ("bnpo", {}, {"loss_type": "bnpo"}),
    "bnpo with KL": ("bnpo", KL, {"loss_type": "bnpo", "beta": 0.2}),
    "ppo": ("ppo", {}, {"loss_type": "bnpo"}),
    "dr_grpo": ("dr_grpo", {}, {"loss_type": "dr_grpo"}),
    "dr_grpo with KL": ("dr_grpo", KL, {"loss_type": "dr_grpo", "beta": 0.2}),
    "dapo": ("dapo", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dapo with KL": ("dapo", KL, {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.2}),
    "cispo": ("cispo", {"high": 1.3}, {"loss_type": "cispo", "epsilon_high": 1.3}),
    "cispo with KL": ("cispo", KL, {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.2}),
    "gspo": ("gspo", {}, {"loss_type": "grpo", **GSPO}),
    "gspo with KL": ("gspo", KL, {"loss_type": "grpo", "beta": 0.2, **GSPO}),
    "dual clip": ("grpo", {"kl_coefficient": 0.0, "cap": 1.3}, {"loss_type": "grpo", "delta": 1.3}),
    "luspo": ("gspo", {"aggregation": "sequence_sums"}, {"loss_type": "luspo", **GSPO}),
}  # fmt: skip


@pytest.mark.parametrize("name", GRPO_CASES)
def test_grpo_and_its_variants(home, client, service, rollouts, name):
    mine, changes, settings = GRPO_CASES[name]
    objective, theirs = get_objective(mine, **changes), theirs_of(grpo_trainer(home, settings), rollouts)
    agree(optimised(client, rollouts, objective), theirs)
    agree(optimised(client, rollouts, objective, parts=(slice(0, 1), slice(1, 4), slice(4, None))), theirs)
    agree(optimised(client, rollouts, objective, service.capabilities().losses), theirs)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.3])
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "cispo with KL", "gspo", "dual clip"])
def test_temperature(home, client, service, rollouts, name, temperature):
    "TRL divides logits by the temperature wherever it computes log-probabilities; so does a datum that says it was drawn at one."
    mine, changes, settings = GRPO_CASES[name]
    objective = get_objective(mine, **changes)
    theirs = theirs_of(grpo_trainer(home, settings | {"temperature": temperature}), rollouts)
    agree(optimised(client, rollouts, objective, temperature=temperature), theirs)
    agree(optimised(client, rollouts, objective, service.capabilities().losses, temperature=temperature), theirs)
    differ(optimised(client, rollouts, objective), theirs)


@pytest.mark.parametrize("name", ["grpo", "dapo", "cispo with KL", "gspo with KL"])
def test_what_is_logged_about_a_policy(home, client, service, rollouts, name):
    "The share of clipped tokens and the mean k3 to the reference, on both paths, over the same tokens as TRL's."
    mine, changes, settings = GRPO_CASES[name]
    objective, trainer = get_objective(mine, **changes), grpo_trainer(home, settings)
    theirs_of(trainer, rollouts)
    logged = trainer._metrics["train"]
    data = as_rollouts(rollouts)
    for losses in (frozenset(), service.capabilities().losses):
        output = submit_objective(client, data, objective, losses).result(60)
        client.optim_step(AdamParams(learning_rate=0.0)).result(60)
        found = [one["logprobs"] for one in output.loss_fn_outputs]
        clipped = logged.get("cispo_clip_ratio") or logged["clip_ratio/region_mean"]
        weights = np.concatenate([np.full(int(one.weights.sum()), 1.0) for one in data])
        if objective.ratio == "sequence":  # one ratio for an answer: TRL counts answers, we their tokens
            continue
        assert clip_fraction(objective, data, found) == pytest.approx(clipped[0], abs=1e-6)
        if "kl" in logged:
            each = np.concatenate(
                [
                    estimate_kl("k3", one, datum.loss_fn_inputs["reference_logprobs"])[0][datum.weights != 0]
                    for one, datum in zip(found, data, strict=True)
                ]
            )
            assert each.mean() == pytest.approx(logged["kl"][0], rel=1e-4) and len(each) == len(weights)


def halves_of(batch):
    """Two micro-batches with different numbers of answers and tokens."""
    every = {name: values for name, values in batch.items() if name == "num_items_in_batch"}
    rows = {name: values for name, values in batch.items() if name not in every}
    return [{name: values[part] for name, values in rows.items()} | every for part in (slice(0, 2), slice(2, None))]


def test_micro_batches(home, client, rollouts):
    "TRL's `dapo` and `cispo` do not depend on micro-batches, its `bnpo` and `grpo` do; none of ours does."
    for name, trl_name, invariant in (
        ("dapo", "dapo", True),
        ("cispo", "cispo", True),
        ("bnpo", "bnpo", False),
    ):
        high = {"dapo": 0.28, "cispo": 5.0, "bnpo": 0.2}[name]
        settings = {
            "loss_type": trl_name,
            "epsilon_high": high,
            "gradient_accumulation_steps": 2,
            "steps_per_generation": 2,
        }
        trainer = grpo_trainer(home, settings | {"per_device_train_batch_size": 3})
        trainer.current_gradient_accumulation_steps = 2
        theirs = theirs_of(trainer, *halves_of(rollouts))
        objective = get_objective(name)
        whole = optimised(client, rollouts, objective)
        agree(optimised(client, rollouts, objective, parts=(slice(0, 2), slice(2, None))), whole)
        (agree if invariant else differ)(whole, theirs)


def test_differences_that_are_conventions(home, client, rollouts):
    usual = trl.GRPOConfig(output_dir=str(home / "trl"), use_cpu=True, bf16=False)
    assert usual.use_bias_correction_kl is True and usual.beta == 0.0
    assert usual.loss_type == "dapo" and usual.scale_rewards == "group"
    # CISPO: epsilon_high is the bound itself and not added to 1; left alone it is 0.2, and every weight is cut to that
    trainer = grpo_trainer(home, {"loss_type": "cispo"})
    assert trainer.epsilon_high == 0.2
    scores = get_objective("reinforce", aggregation="tokens")
    agree(optimised(client, rollouts, scores), theirs_of(trainer, rollouts), share=5.0, value=False)
    # with one ratio for the sequence, TRL corrects k3 by that one, we by the token's, of which the proof speaks
    trainer = grpo_trainer(home, {"loss_type": "grpo", "beta": 0.2, "use_bias_correction_kl": True, **GSPO})
    differ(
        optimised(client, rollouts, get_objective("gspo", kl_corrected=True, **KL)),
        theirs_of(trainer, rollouts),
    )


def test_rloo_on_the_policy(home, client, rollouts):
    "TRL clips the ratio of the whole answer; where the policy is the one that sampled, the gradient is that of the score."
    rows = [{"prompt": "w2 w3"}] * 6
    settings = {"num_generations": 2, "max_completion_length": LONGEST, "beta": 0.0}
    trainer = trainer_of(home, "RLOO", rows, settings, reward_funcs=lambda completions, **_: [0.0] * len(completions))
    ids = torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], 1)
    mask = torch.cat([rollouts["prompt_mask"], rollouts["completion_mask"]], 1)
    width = rollouts["completion_ids"].shape[1]
    with torch.no_grad():
        found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)[0]
    batch = {**rollouts, "old_logps": (found * rollouts["completion_mask"]).sum(1)}
    agree(optimised(client, rollouts, get_objective("rloo")), theirs_of(trainer, batch), value=False)


@pytest.mark.parametrize(
    ("name", "trainer", "settings"),
    [
        ("sample_std", "GRPO", {"scale_rewards": "group"}),
        ("batch_std", "GRPO", {"scale_rewards": "batch"}),
        ("centre", "GRPO", {"scale_rewards": "none"}),
        ("leave_one_out", "RLOO", {"beta": 0.0}),
    ],
)
def test_group_advantages(home, name, trainer, settings):
    "TRL samples, rewards and compares; we compare the same rewards."
    rng, paid = np.random.default_rng(6), []

    def reward(completions, **_):
        paid.extend(rng.normal(size=len(completions)).tolist())
        paid[-3:] = [0.25] * 3  # a group whose rewards are all equal
        return paid

    rows, settings = (
        [{"prompt": f"w{place} w3"} for place in range(2, 5)],
        {"max_completion_length": 2, "num_generations": 3, **settings},
    )
    made = trainer_of(home, trainer, rows, settings, reward_funcs=reward)
    repeated = [row for row in rows for _ in range(3)]
    batch = made._generate_and_score_completions(repeated)
    mine = np.concatenate(ADVANTAGES[name](np.array(paid, dtype=np.float32).reshape(3, 3)))
    assert np.allclose(mine, batch["advantages"].numpy(), rtol=1e-4, atol=1e-5)


# Distillation


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_jsd(beta):
    "All tokens but one are kept; the last is then `all others`."
    gkd = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    draws = torch.Generator().manual_seed(0)
    teacher, student = (2 * torch.randn(1, 5, 7, dtype=torch.float64, generator=draws) for _ in range(2))
    student.requires_grad_()
    theirs = gkd.generalized_jsd_loss(student, teacher, beta=beta, reduction="sum")
    rows = [one[0].log_softmax(-1)[:, :6] for one in (teacher, student)]
    mine = get_distill_loss("jsd", beta=beta)(*rows).sum()
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-9)
    one, two = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (mine, theirs))
    assert float((one - two).norm()) <= 1e-9 * float(two.norm())


def test_nothing_is_left_out():
    "What is added to a table is compared here, or named as what TRL has not."
    apart = {"cdpo", "kto", "simpo", "orpo"}  # in tests of their own above
    assert set(PAIR_LOSSES) - set(DPO_CASES) - apart == {"ipo_sum"}
    compared = {mine for mine, _, _ in GRPO_CASES.values()} | {"rloo", "reinforce"}
    assert set(OBJECTIVES) - compared == {"importance_sampling", "dro"}
