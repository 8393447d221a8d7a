"""Several teachers, each for its kind of problem; and a model that teaches itself, having seen the answer."""

import numpy as np

from kitchen.adapters.toy.client import ToyService
from kitchen.data.batches import Batches
from kitchen.envs.base import question_problems
from kitchen.rendering.base import to_datum
from kitchen.rendering.registry import get_renderer
from kitchen.session.kitchen import Kitchen
from kitchen.train.distillation import instruction_view, train_on_policy
from kitchen.train.sft import adam_schedule, train_sft
from kitchen.types import AdamParams, Message, SamplingParams

SERVICE = ToyService()
RENDERER = get_renderer("auto", SERVICE.get_tokenizer("toy"))
PARAMS = SamplingParams(max_tokens=4, stop=tuple(RENDERER.stop_sequences()))


def shown(rows, steps=120):
    """A toy that has learnt conversations by heart."""
    training = SERVICE.create_training_client("toy", None, 0)
    data = [to_datum(RENDERER, [Message(*one) for one in row]) for row in rows]
    batches = Batches(data, batch_size=len(data), epochs=steps, seed=0)
    list(train_sft(training, batches, adam_schedule(AdamParams(0.02), len(batches))))
    return training


def answer(sampler, *messages):
    """The greedy answer."""
    prompt = RENDERER.generation_prompt([Message(*one) for one in messages])
    tokens = sampler.sample(prompt, 1, SamplingParams(4, temperature=0, stop=PARAMS.stop)).result().completions[0].tokens
    return RENDERER.parse_response(tokens)[0].content


def problems(**kinds):
    rows = [{"question": question, "task": kind} for kind, questions in kinds.items() for question in questions]
    return question_problems(rows, ())


def taught(student, problems, teachers, **options):
    """Train, and give the divergences from the teacher."""
    batches = Batches(problems, batch_size=len(problems), epochs=60, seed=0)
    losses = SERVICE.capabilities().losses
    events = train_on_policy(
        student, batches, RENDERER, PARAMS, teachers, lambda step: AdamParams(0.01 * (1 - step / 60)), losses, 8, 0, **options
    )
    return [item["kl_reference"] for item in events if item.name == "train.policy"]


def test_each_kind_of_problem_has_its_teacher():
    first = shown([[("user", asked), ("assistant", "aa")] for asked in ("p1", "p2", "q1", "q2")])
    second = shown([[("user", asked), ("assistant", "bb")] for asked in ("p1", "p2", "q1", "q2")])
    student = shown([[("user", asked), ("assistant", said)] for asked in ("p1", "p2", "q1", "q2") for said in ("aa", "bb")])
    teachers = {"p": first.create_sampling_client(), "": second.create_sampling_client()}
    apart = taught(student, problems(p=["p1", "p2"], q=["q1", "q2"]), teachers)
    assert np.mean(apart[-5:]) < 0.2 * np.mean(apart[:5])
    sampler = student.create_sampling_client()
    assert [answer(sampler, ("user", asked)) for asked in ("p1", "p2", "q1", "q2")] == ["aa", "aa", "bb", "bb"]


def test_a_model_that_is_shown_the_answer_teaches_itself_to_know_it():
    """It has learnt to repeat what the system message says; without one it says one word or the other, as chance has it."""
    words = [(word, asked) for word in ("no", "si") for asked in ("x?", "y?")]
    heard = [[("system", word), ("user", asked), ("assistant", word)] for word, asked in words]
    model = shown([*heard, *([("user", asked), ("assistant", word)] for word, asked in words)], steps=200)
    teacher = model.create_sampling_client()
    assert [answer(teacher, ("system", word), ("user", asked)) for word, asked in words] == ["no", "no", "si", "si"]
    rows = [{"question": "x?", "answer": "no", "task": "own"}, {"question": "y?", "answer": "si", "task": "own"}]
    apart = taught(model, question_problems(rows, ()), {"": teacher}, teacher_view=instruction_view("{gold}"))
    assert np.mean(apart[-5:]) < 0.2 * np.mean(apart[:5])
    sampler = model.create_sampling_client()
    assert [answer(sampler, ("user", row["question"])) for row in rows] == ["no", "si"]


def test_teachers_by_kind_in_a_run(runs):
    k = Kitchen(
        "distill_on_policy", backend="toy", env="task:parity+guess", teacher="toy", teachers={"guess": "toy"}, problems=8,
        batch_size=4, group_size=2, graded=4, max_tokens=4,
    ).run()  # fmt: skip
    assert [one.question.text for one in k.state["teacher_answers"]] == [one.text for one in k.state["problems"].test]
    opened = [item for item in k.log if item.name == "port.call" and item["verb"] == "create_sampling_client"]
    assert k.status == "completed" and opened and set(k.state["teacher_samplers"]) == {"", "guess"}
    k.close()


def test_the_distance_from_a_teacher_is_the_divergence_of_its_distributions():
    """Against both whole distributions, asked of samplers: over all tokens it is the divergence, over few a lower bound with its mass."""
    from kitchen.train.distillation import soft_targets, teacher_divergence

    service = ToyService()
    renderer = get_renderer("auto", service.get_tokenizer("toy"))
    data = [to_datum(renderer, [Message("user", f"{n}?"), Message("assistant", f"{n + 1} it is")]) for n in range(3)]
    teaching = service.create_training_client("toy", None, 1)
    for _ in range(4):
        teaching.forward_backward(data, "cross_entropy").result()
        teaching.optim_step(AdamParams(0.05)).result()
    student, teacher = service.create_training_client("toy", None, 0), teaching.create_sampling_client()
    size = len(renderer.tokenizer.token_bytes())

    def whole(sampler, datum):
        likely = sampler.compute_topk(datum.tokens.tolist(), size).result()
        logprobs = np.zeros((len(datum), size))
        np.put_along_axis(logprobs, likely.tokens, likely.logprobs, -1)
        return logprobs

    total, kept, tokens = 0.0, 0.0, 0.0
    for datum in data:
        first, second = whole(teacher, datum), whole(student.create_sampling_client(), datum)
        total += float(datum.weights @ (np.exp(first) * (first - second)).sum(-1))
        kept += float(datum.weights @ np.sort(np.exp(first), -1)[:, -4:].sum(-1))
        tokens += float(datum.weights.sum())
    found = {count: teacher_divergence(student, soft_targets(teacher, data, count), 0, "test", 2) for count in (1, 4, 32, size)}
    np.testing.assert_allclose(found[size]["kl"], total / tokens, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(found[4]["mass"], kept / tokens, rtol=1e-5)
    values = [found[count]["kl"] for count in (1, 4, 32, size)]
    assert values == sorted(values) and values[0] > 0 and found[4]["kept"] == 4
    own = soft_targets(student.create_sampling_client(), data, 4)
    assert abs(teacher_divergence(student, own, 0, "test")["kl"]) < 1e-5, "a student is nowhere from itself"
