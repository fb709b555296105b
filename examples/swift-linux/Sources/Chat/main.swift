// Download a pack, merge it, ask a question with and without it:
//
//     swift run Chat MODEL.gguf PACK_URL TRUSTED_KEY STORE_FOLDER SYSTEM_PROMPT QUESTION

import Edgeweld
import Foundation

func ask(_ session: Session, _ prompt: String, _ question: String) async throws {
    let answer = session.stream([.system(prompt), .user(question)], options: GenerateOptions(maxTokens: 48))
    for try await event in answer {
        switch event {
        case .token(let token):
            print(token.text, terminator: "")
        case .end(let end):
            print("\n[\(end.arm): \(end.promptTokens) prompt tokens, first token after \(Int(end.timeToFirstTokenMs)) ms]")
        }
    }
}

func run(_ arguments: [String]) async throws {
    let engine = try await Engine.load(arguments[0], options: LoadOptions(threads: 2))
    let session = try engine.session()
    try await ask(session, arguments[4], arguments[5])
    let store = try PackStore(folder: arguments[3], trustedKeys: [arguments[2]])
    for try await event in store.download(for: engine, from: arguments[1]) {
        switch event {
        case .progress(let progress):
            FileHandle.standardError.write(Data("\(progress.bytesDone) bytes\n".utf8))
        case .verified(let pack):
            let report = try await engine.merge(pack, mode: .sidePath)
            print("[merged in \(Int(report.elapsedMs)) ms: \(report.reason)]")
        }
    }
    try await ask(session, arguments[4], arguments[5])
}

let arguments = Array(CommandLine.arguments.dropFirst())
guard arguments.count == 6 else {
    print("usage: Chat MODEL.gguf PACK_URL TRUSTED_KEY STORE_FOLDER SYSTEM_PROMPT QUESTION")
    exit(2)
}
do {
    try await run(arguments)
} catch {
    print(error)
    exit(1)
}
