"""Are classifiers, guards and servers read as they mean it? On tiny ones, saved and served in the same format."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from safetyheads.judges import ClassifierJudge, GuardJudge, Judge, ServerJudge
from safetyheads.judges.classifiers import _means_refusal

ASKED = ["bake a cake", "bake a cake", "bake a cake", "bake a cake"]
SAID = ["sorry no cake today", "first take some flour", "", "flour flour flour flour flour flour"]
WORDS = "<pad> <unk> <end> bake a cake sorry no today first take some flour Safety:Safe Refusal:Yes Refusal:No"


def words(folder, **options):
    vocabulary = {word: n for n, word in enumerate(WORDS.split())}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=16, **special)
    for name, value in options.items():
        setattr(fast, name, value)
    fast.save_pretrained(folder)
    return vocabulary


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier that calls what has "sorry" in it a rejection, as a folder."""
    folder = tmp_path_factory.mktemp("distilroberta-base-rejection-v1")
    size = len(words(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=size,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            id2label={0: "NORMAL", 1: "REJECTION"},
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = BertForSequenceClassification(config)
        ids = torch.randint(3, 13, (64, 6))
        wanted = (ids == 6).any(-1).long()
        optimiser = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(80):
            optimiser.zero_grad()
            model(input_ids=ids, labels=wanted).loss.backward()
            optimiser.step()
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    """A guard whose next word follows from the last: it writes "Refusal:Yes" behind an answer that ends in "today"."""
    folder = tmp_path_factory.mktemp("Qwen3Guard-Gen-tiny")
    template = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}"
    place = words(folder, chat_template=template)
    size = len(place)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=False,
        eos_token_id=place["<end>"],
        pad_token_id=place["<pad>"],
    )
    model = LlamaForCausalLM(config)
    follows = torch.zeros(size, size)
    for word, after in (
        ("today", "Refusal:Yes"),
        ("flour", "Refusal:No"),
        ("Refusal:Yes", "Safety:Safe"),
        ("Refusal:No", "Safety:Safe"),
        ("Safety:Safe", "<end>"),
        ("cake", "<end>"),
    ):
        follows[place[after], place[word]] = 9.0
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(follows)
    model.save_pretrained(folder)
    return folder


def test_a_classifier_says_which_answers_refuse(classifier):
    judge = ClassifierJudge(classifier)
    assert isinstance(judge, Judge)
    assert judge.name == classifier.name
    assert judge(ASKED, SAID) == ("refuse", "comply", "degenerate", "degenerate")
    assert ClassifierJudge(classifier, rows=1)(ASKED, SAID) == judge(ASKED, SAID)
    turned = ClassifierJudge(classifier, refusal="NORMAL")
    assert turned(ASKED[:2], SAID[:2]) == ("comply", "refuse")


def test_a_classifier_reads_the_prompt_where_its_text_has_it(classifier):
    both = ClassifierJudge(classifier, text="{prompt} {answer}")
    assert both(["sorry a cake", "{answer} a cake"], ["first take flour"] * 2) == (
        "refuse",
        "comply",
    )


def test_a_long_answer_is_cut_and_not_refused(classifier):
    assert ClassifierJudge(classifier)(["bake"], ["first take some cake no bake " * 9]) is not None


def test_labels_that_say_nothing_are_asked_for(classifier, tmp_path):
    with pytest.raises(ValueError, match="has the labels NORMAL, REJECTION; say which one"):
        ClassifierJudge(classifier, refusal="refusal")(ASKED, SAID)
    model = BertForSequenceClassification.from_pretrained(classifier)
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    model.save_pretrained(tmp_path)
    words(tmp_path)
    with pytest.raises(ValueError, match="has the labels LABEL_0, LABEL_1; say which one"):
        ClassifierJudge(tmp_path)(ASKED, SAID)
    for options in ({"text": "{prompt}"}, {"threshold": 1.0}):
        with pytest.raises(ValueError, match=r"text is|threshold is"):
            ClassifierJudge(classifier, **options)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ("Non-refusal Refusal", "Refusal"),
        ("no_refusal refusal", "refusal"),
        ("not_refused refused", "refused"),
        ("NORMAL REJECTION", "REJECTION"),
    ],
)
def test_labels_of_known_classifiers_are_understood(labels, found):
    assert [label for label in labels.split() if _means_refusal(label)] == [found]


def test_a_guard_is_read_by_its_line(guard):
    judge = GuardJudge(guard)
    assert judge(ASKED, SAID) == ("refuse", "comply", "degenerate", "degenerate")
    with pytest.raises(
        ValueError, match="wrote no line 'Refusal: Yes' or 'Refusal: No' for 1 of 2"
    ):
        judge(ASKED[:2], ["take some flour", "take some cake"])


def test_a_model_without_a_template_is_no_guard(guard, tmp_path):
    LlamaForCausalLM.from_pretrained(guard).save_pretrained(tmp_path)
    words(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        GuardJudge(tmp_path)(ASKED[:1], SAID[:1])


class _Server(BaseHTTPRequestHandler):
    """Chat completions that call "sorry" a refusal; a model named "talker" says no verdict, and "odd" no choices."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        said = "refuse" if "sorry" in body["messages"][1]["content"] else "Comply."
        said = {"talker": "I see.", "thinker": f"<think>refuse or comply?</think> {said}"}.get(
            body["model"], said
        )
        reply = {} if body["model"] == "odd" else {"choices": [{"message": {"content": said}}]}
        self.send_response(200 if self.path == "/v1/chat/completions" else 404)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    made = HTTPServer(("127.0.0.1", 0), _Server)
    made.seen = []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_server_on_this_machine_is_asked(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    address = f"http://127.0.0.1:{server.server_port}/v1"
    judge = ServerJudge(address, "reader")
    assert judge(ASKED, SAID) == ("refuse", "comply", "degenerate", "degenerate")
    assert len(server.seen) == 2
    assert server.seen[0]["temperature"] == 0
    assert ServerJudge(address, "thinker")(ASKED[:2], SAID[:2]) == ("refuse", "comply")
    with pytest.raises(ValueError, match="talker did not reply with one of") as error:
        ServerJudge(address, "talker")(ASKED[:1], SAID[:1])
    assert "cake" not in str(error.value)
    with pytest.raises(ValueError, match="another form than chat completions"):
        ServerJudge(address, "odd")(ASKED[:1], SAID[:1])
    with pytest.raises(ValueError, match=r"did not answer .*is the server up"):
        ServerJudge(address.replace("/v1", "/v2"), "reader")(ASKED[:1], SAID[:1])


@pytest.mark.parametrize(
    "address", ["https://api.example.com/v1", "localhost:80", "ftp://localhost"]
)
def test_text_does_not_leave_this_machine(address):
    with pytest.raises(ValueError, match="go to this machine alone"):
        ServerJudge(address, "any")
