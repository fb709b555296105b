"""Download a pack, merge it, ask a question with and without it.

    python main.py MODEL.gguf PACK_URL TRUSTED_KEY STORE_FOLDER SYSTEM_PROMPT QUESTION
"""

import sys

import edgeweld


def ask(session, prompt, question):
    messages = [edgeweld.system(prompt), edgeweld.user(question)]
    generation = session.chat(messages, max_tokens=48, on_token=lambda token: print(token.text, end="", flush=True))
    print(
        f"\n[{generation.arm.name}: {generation.prompt_tokens} prompt tokens, "
        f"first token after {generation.time_to_first_token_ms:.0f} ms]"
    )


def main(model, url, key, folder, prompt, question):
    with edgeweld.Engine.load(model, threads=2) as engine:
        session = engine.session()
        ask(session, prompt, question)

        store = edgeweld.PackStore(folder, [key])
        pack = store.download(engine, url, on_progress=lambda p: print(f"{p.bytes_done} bytes", file=sys.stderr))
        report = engine.merge(pack, edgeweld.MergeMode.SIDE_PATH)
        print(f"[merged in {report.elapsed_ms:.0f} ms: {report.reason}]")
        ask(session, prompt, question)


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except edgeweld.SdkError as error:
        sys.exit(f"{type(error).__name__}: {error}")
