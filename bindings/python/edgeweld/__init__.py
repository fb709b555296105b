"""Edgeweld: a small language model that needs no prompt, on this machine.

    import edgeweld

    with edgeweld.Engine.load("model.gguf", threads=2) as engine:
        store = edgeweld.PackStore("packs", trusted_keys=["ed25519:…"])
        pack = store.download(engine, "https://example.com/v1/packs/orders", on_progress=print)
        engine.merge(pack)
        for token in engine.session().stream([edgeweld.user("Where is my order?")]):
            print(token.text, end="", flush=True)

Blocking calls release the interpreter's lock, so they may run in threads. Pass a `TaskHandle` to cancel one from another
thread; a generator that is closed or dropped cancels its turn itself. What the classes add to the generated module
`edgeweld.edgeweld_ffi` is keyword options, generators and context managers; records and errors are the generated ones.
"""

import queue
import threading

from . import edgeweld_ffi as _ffi
from .edgeweld_ffi import (
    Arm,
    Constraint,
    Device,
    DownloadOptions,
    DownloadProgress,
    FinishReason,
    GenerateOptions,
    Generation,
    InternalError,
    KvType,
    LoadOptions,
    LogLevel,
    MergedPack,
    MergeMode,
    MergeOptions,
    MergeProgress,
    MergeReport,
    MergeStage,
    Message,
    ModelInfo,
    OnnxOptions,
    PackInfo,
    PackRefusal,
    Provider,
    ProviderOutcome,
    Role,
    SamplerOptions,
    SdkError,
    StoreOptions,
    TaskHandle,
    Token,
    ToolCall,
    VerifiedPack,
    live_object_count,
)


def system(text):
    """The app's message to the model; at most one, first."""
    return Message(role=Role.SYSTEM, content=text)


def user(text):
    """A person's message."""
    return Message(role=Role.USER, content=text)


def assistant(text):
    """A model's answer."""
    return Message(role=Role.ASSISTANT, content=text)


class _Closing:
    """Holds an object of the library until it is closed."""

    def __init__(self, inner):
        self._held = inner

    @property
    def _inner(self):
        if self._held is None:
            raise ValueError(f"{type(self).__name__} is closed")
        return self._held

    def close(self):
        """Lets go of it; the library frees it when nothing uses it any more."""
        self._held = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class Engine(_Closing):
    """A loaded model, for any number of sessions."""

    @classmethod
    def load(cls, path, *, on_progress=None, task=None, **options):
        """Loads the GGUF file at `path`; `options` are those of `LoadOptions`. `on_progress(done, total)` counts layers."""
        listener = on_progress and _Listener(on_load=on_progress)
        return cls(_ffi.Engine.load_blocking(str(path), LoadOptions(**options), listener, task))

    def session(self):
        """A new conversation."""
        return Session(self._inner.session())

    def merge(self, pack, mode=None, *, on_progress=None, task=None, **options):
        """Puts a verified pack into the model; `options` are those of `MergeOptions`."""
        listener = on_progress and _Listener(on_merge=on_progress)
        return self._inner.merge_blocking(pack, MergeOptions(mode=mode, **options), listener, task)

    def unmerge(self):
        """Takes the pack out of the model, which then answers exactly as before."""
        self._inner.unmerge()

    def merged_pack(self):
        """The pack that is in the model, if any."""
        return self._inner.merged_pack()

    def save_merged(self, path, *, task=None):
        """Saves the merged model as a GGUF file."""
        self._inner.save_merged_blocking(str(path), task)

    def info(self):
        """What the model is."""
        return self._inner.info()

    def count_tokens(self, text):
        """Tokens that a text has in this model."""
        return self._inner.count_tokens(text)


class Session(_Closing):
    """One conversation and its memory of it. It answers one call at a time; a second one waits."""

    def chat(self, messages, *, on_token=None, on_prefill=None, task=None, **options):
        """Answers a conversation; `options` are those of `GenerateOptions`."""
        listener = _Listener(on_token=on_token, on_prefill=on_prefill) if on_token or on_prefill else None
        return self._inner.chat_blocking(messages, GenerateOptions(**options), listener, task)

    def complete(self, text, *, on_token=None, task=None, **options):
        """Continues a text without a chat template."""
        listener = on_token and _Listener(on_token=on_token)
        return self._inner.complete_blocking(text, GenerateOptions(**options), listener, task)

    def stream(self, messages, **options):
        """Yields the answer's tokens; the generator's value (`yield from`) is the `Generation`. Closing it cancels the turn."""
        inner, task, items = self._inner, TaskHandle(), queue.SimpleQueue()

        def answer():
            try:
                listener = _Listener(on_token=items.put)
                items.put(inner.chat_blocking(messages, GenerateOptions(**options), listener, task))
            except BaseException as error:  # Whatever it is, the consumer must see it.
                items.put(error)

        worker = threading.Thread(target=answer, name="edgeweld-stream", daemon=True)
        worker.start()
        try:
            while isinstance(item := items.get(), Token):
                yield item
            if isinstance(item, BaseException):
                raise item
            return item
        finally:
            task.cancel()
            worker.join()

    def clear(self):
        """Forgets the conversation."""
        self._inner.clear()

    def cached_tokens(self):
        """Tokens of the conversation that are remembered."""
        return self._inner.cached_tokens()

    def cache_size_bytes(self):
        """Bytes that the memory of the conversation takes."""
        return self._inner.cache_size_bytes()

    def save_prefix(self, path):
        """Saves the memory of the conversation."""
        self._inner.save_prefix(str(path))

    def load_prefix(self, path):
        """Replaces the memory of the conversation by a saved one; returns its tokens."""
        return self._inner.load_prefix(str(path))


class PackStore(_Closing):
    """Packs in a folder: downloaded resumably, checked, kept. `options` are those of `StoreOptions`."""

    def __init__(self, folder, trusted_keys, **options):
        super().__init__(_ffi.PackStore(str(folder), list(trusted_keys), StoreOptions(**options)))

    def download(self, engine, source, *, on_progress=None, task=None, **options):
        """Downloads and verifies a pack for the engine's model; `options` are those of `DownloadOptions`."""
        listener = on_progress and _Listener(on_download=on_progress)
        options = DownloadOptions(**options)
        return self._inner.download_blocking(engine._inner, str(source), options, listener, task)

    def remove(self, digest):
        """Deletes a pack from the folder."""
        self._inner.remove(digest)


def set_log_listener(on_log, level=LogLevel.INFO):
    """Sends log lines to `on_log(level, module, line)`; `None` sends them to nobody."""
    _ffi.set_log_listener(on_log and _Listener(on_log=on_log), level)


class _Listener(_ffi.LoadListener, _ffi.TokenListener, _ffi.DownloadListener, _ffi.MergeListener, _ffi.LogListener):
    """Calls functions."""

    def __init__(self, **functions):
        self._functions = functions

    def _call(self, name, *arguments):
        function = self._functions.get(name)
        if function is not None:
            function(*arguments)

    def on_load(self, done_layers, total_layers):
        self._call("on_load", done_layers, total_layers)

    def on_token(self, token):
        self._call("on_token", token)

    def on_prefill(self, done_tokens, total_tokens):
        self._call("on_prefill", done_tokens, total_tokens)

    def on_download(self, progress):
        self._call("on_download", progress)

    def on_merge(self, progress):
        self._call("on_merge", progress)

    def on_log(self, level, module, line):
        self._call("on_log", level, module, line)
