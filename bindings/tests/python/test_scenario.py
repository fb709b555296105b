"""The scenario in Python. `cargo xtask test` runs it; what it must see comes from the Rust run."""

import gc
import os
import unittest

import edgeweld
from edgeweld import Arm, FinishReason, MergeMode, PackRefusal, SdkError, TaskHandle


def facts():
    with open(os.environ["EDGEWELD_SCENARIO"], encoding="utf-8") as file:
        pairs = (line.rstrip("\n").split("=", 1) for line in file)
        return {name: value.replace("\\n", "\n").replace("\\\\", "\\") for name, value in pairs}


FACTS = facts()
OPTIONS = {"max_tokens": int(FACTS["max_tokens"])}
MESSAGES = [edgeweld.system(FACTS["prompt"]), edgeweld.user(FACTS["question"])]


class Scenario(unittest.TestCase):
    def setUp(self):
        self.alive = edgeweld.live_object_count()
        layers = []
        self.engine = edgeweld.Engine.load(
            FACTS["model"],
            threads=2,
            context_length=int(FACTS["context_length"]),
            on_progress=lambda done, total: layers.append((done, total)),
        )
        self.assertEqual(layers[-1][0], layers[-1][1])
        self.store = edgeweld.PackStore(os.environ["EDGEWELD_STORE"], [FACTS["trusted_key"]])
        self.session = self.engine.session()

    def tearDown(self):
        del self.engine, self.store, self.session
        gc.collect()
        self.assertEqual(edgeweld.live_object_count(), self.alive, "something is still alive")

    def download(self, name, **options):
        return self.store.download(self.engine, f"{FACTS['url']}/python/{name}.pack", **options)

    def merged(self):
        pack = self.download("good")
        report = self.engine.merge(pack, MergeMode.SIDE_PATH)
        self.assertEqual((report.chosen, report.gain_min), (MergeMode.SIDE_PATH, None))
        return pack

    def ask(self):
        return self.session.chat(MESSAGES, **OPTIONS)

    def test_a_pack_replaces_the_prompt_and_leaves_without_a_trace(self):
        self.assertEqual(self.engine.info().base_digest, FACTS["base_digest"])
        prompted = self.ask()
        self.assertEqual((prompted.arm, prompted.text), (Arm.PROMPT, FACTS["base_text"]))

        # The first connection is cut in the middle.
        pack = self.merged()
        self.assertEqual(pack.info().digest, FACTS["pack_digest"])
        tokens = []
        specialized = self.session.chat(MESSAGES, on_token=tokens.append, **OPTIONS)
        self.assertEqual((specialized.arm, specialized.text), (Arm.PACK, FACTS["pack_text"]))
        self.assertLess(specialized.prompt_tokens, prompted.prompt_tokens)
        self.assertEqual("".join(token.text for token in tokens), specialized.text)
        streamed = "".join(token.text for token in self.session.stream(MESSAGES, **OPTIONS))
        self.assertEqual(streamed, FACTS["pack_text"])

        self.engine.unmerge()
        self.assertIsNone(self.engine.merged_pack())
        self.assertEqual(self.ask().text, FACTS["base_text"])

    def test_a_turn_is_cancelled_and_the_session_goes_on(self):
        self.merged()
        task, tokens = TaskHandle(), []

        def on_token(token):
            tokens.append(token)
            if len(tokens) == 3:
                task.cancel()

        cut = self.session.chat(MESSAGES, on_token=on_token, task=task, **OPTIONS)
        self.assertEqual((cut.finish_reason, cut.generated_tokens), (FinishReason.CANCELLED, 3))
        self.assertTrue(FACTS["pack_text"].startswith(cut.text) and task.is_finished())

        stream = self.session.stream(MESSAGES, max_tokens=400)
        next(stream)
        stream.close()
        self.assertEqual(self.ask().text, FACTS["pack_text"])

    def test_what_a_listener_throws_arrives(self):
        def typed(_):
            raise SdkError.Internal("the app's own trouble")

        def untyped(_):
            raise KeyError("no such widget")

        with self.assertRaises(SdkError.Internal) as caught:
            self.session.chat(MESSAGES, on_token=typed)
        self.assertEqual(caught.exception.reason, "the app's own trouble")
        with self.assertRaises(SdkError.Internal) as caught:
            self.session.chat(MESSAGES, on_token=untyped)
        self.assertIn("no such widget", caught.exception.reason)
        self.assertEqual(self.ask().text, FACTS["base_text"])

    def test_packs_that_must_not_be_used_are_refused_with_facts(self):
        for name, prefix, refusal in [
            ("stranger", "stranger", PackRefusal.UNTRUSTED_KEY),
            ("other-model", "other_model", PackRefusal.OTHER_MODEL),
            ("tampered", "tampered", PackRefusal.DAMAGED),
        ]:
            with self.assertRaises(SdkError.PackRefused) as caught:
                self.download(name)
            error = caught.exception
            self.assertEqual(error.refusal, refusal)
            self.assertEqual(error.expected or "", FACTS[f"{prefix}_expected"])
            self.assertEqual(error.actual or "", FACTS[f"{prefix}_actual"])
        with self.assertRaises(SdkError.InvalidArgument) as caught:
            edgeweld.PackStore(os.environ["EDGEWELD_STORE"], ["not a key"])
        self.assertEqual(caught.exception.argument, "trusted_keys")

    def test_a_full_disk_is_reported_in_bytes(self):
        with self.assertRaises(SdkError.DiskFull) as caught:
            self.download("huge", size_bytes_max=2**63)
        self.assertEqual(caught.exception.required_bytes, int(FACTS["huge_size_bytes"]))
        self.assertLess(caught.exception.available_bytes, int(FACTS["huge_size_bytes"]))

    def test_a_cancelled_download_goes_on_where_it_stopped(self):
        # In a store of its own: another test may have the same file.
        self.store = edgeweld.PackStore(os.environ["EDGEWELD_STORE"] + "-slow", [FACTS["trusted_key"]])
        task = TaskHandle()
        stop = lambda progress: progress.bytes_done > 0 and task.cancel()
        with self.assertRaises(SdkError.Cancelled):
            self.download("slow", on_progress=stop, task=task)
        seen = []
        self.download("slow", on_progress=seen.append)
        self.assertGreater(seen[0].bytes_done, 0)

    def test_a_cancelled_merge_leaves_the_model_as_it_was(self):
        pack, task = self.download("good"), TaskHandle()
        with self.assertRaises(SdkError.Cancelled):
            self.engine.merge(pack, on_progress=lambda _: task.cancel(), task=task)
        self.assertIsNone(self.engine.merged_pack())
        self.assertEqual(self.ask().text, FACTS["base_text"])

    def test_a_conversation_that_does_not_fit_is_refused_with_both_counts(self):
        with self.assertRaises(SdkError.ContextFull) as caught:
            self.session.chat([edgeweld.user("word " * 1000)])
        self.assertEqual(caught.exception.required_tokens, int(FACTS["context_required"]))
        self.assertEqual(caught.exception.available_tokens, int(FACTS["context_length"]))

    def test_a_missing_model_is_named(self):
        with self.assertRaises(SdkError.File) as caught:
            edgeweld.Engine.load("/no/such/model.gguf")
        self.assertEqual(caught.exception.path, "/no/such/model.gguf")

    def test_a_closed_object_says_so(self):
        with self.session:
            pass
        with self.assertRaises(ValueError):
            self.ask()


if __name__ == "__main__":
    unittest.main()
