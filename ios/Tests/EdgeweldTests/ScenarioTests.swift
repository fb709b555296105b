// The scenario in Swift. `cargo xtask sdk swift` runs it where a Swift toolchain is; what it must see comes from the Rust run.

import Edgeweld
import Foundation
import Testing

private let environment = ProcessInfo.processInfo.environment
private let facts: [String: String] = {
    let text = try! String(contentsOfFile: environment["EDGEWELD_SCENARIO"]!, encoding: .utf8)
    let pairs = text.split(separator: "\n").map { line in
        let parts = line.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let value = parts[1].replacingOccurrences(of: "\\n", with: "\n").replacingOccurrences(of: "\\\\", with: "\\")
        return (String(parts[0]), value)
    }
    return Dictionary(uniqueKeysWithValues: pairs)
}()

private func options() -> GenerateOptions {
    GenerateOptions(maxTokens: UInt32(facts["max_tokens"]!)!)
}

private func messages() -> [Message] {
    [.system(facts["prompt"]!), .user(facts["question"]!)]
}

/// What every test begins with.
private struct Stage {
    let engine: Engine
    let store: PackStore
    let session: Session

    init(folder: String = environment["EDGEWELD_STORE"]!) async throws {
        let length = UInt32(facts["context_length"]!)!
        engine = try await Engine.load(facts["model"]!, options: LoadOptions(threads: 2, contextLength: length))
        store = try PackStore(folder: folder, trustedKeys: [facts["trusted_key"]!])
        session = try engine.session()
    }

    func pack(_ name: String, options: DownloadOptions = DownloadOptions()) async throws -> VerifiedPack {
        var pack: VerifiedPack?
        for try await event in store.download(for: engine, from: "\(facts["url"]!)/swift/\(name).pack", options: options) {
            if case .verified(let verified) = event { pack = verified }
        }
        return try #require(pack)
    }

    func merge() async throws {
        let report = try await engine.merge(pack("good"), mode: .sidePath)
        #expect(report.chosen == .sidePath)
    }

    func ask() async throws -> Generation {
        try await session.chat(messages(), options: options())
    }
}

@Suite(.serialized)
struct Scenario {
    @Test func aPackReplacesThePromptAndLeavesWithoutATrace() async throws {
        let stage = try await Stage()
        #expect(try stage.engine.info().baseDigest == facts["base_digest"])
        let prompted = try await stage.ask()
        #expect(prompted.arm == .prompt && prompted.text == facts["base_text"])

        // The first connection is cut in the middle.
        try await stage.merge()
        #expect(stage.engine.mergedPack()?.digest == facts["pack_digest"])
        var (text, end) = ("", Generation?.none)
        for try await event in stage.session.stream(messages(), options: options()) {
            switch event {
            case .token(let token): text += token.text
            case .end(let generation): end = generation
            }
        }
        let specialized = try #require(end)
        #expect(specialized.arm == .pack && specialized.text == facts["pack_text"] && text == specialized.text)
        #expect(specialized.promptTokens < prompted.promptTokens)

        try stage.engine.unmerge()
        #expect(stage.engine.mergedPack() == nil)
        #expect(try await stage.ask().text == facts["base_text"])
    }

    @Test func aCancelledTaskStopsTheTurnAndTheSessionGoesOn() async throws {
        let stage = try await Stage()
        try await stage.merge()
        let turn = Task { try await stage.session.chat(messages(), options: GenerateOptions(maxTokens: 400)) }
        try await Task.sleep(nanoseconds: 100_000_000)
        turn.cancel()
        #expect(try await turn.value.finishReason == .cancelled)
        #expect(try await stage.ask().text == facts["pack_text"])
    }

    @Test func whatAListenerThrowsArrives() async throws {
        final class Throwing: TokenListener {
            func onToken(token: Token) throws { throw SdkError.Internal(reason: "the app's own trouble") }
            func onPrefill(doneTokens: UInt64, totalTokens: UInt64) throws {}
        }
        let stage = try await Stage()
        #expect(throws: SdkError.Internal(reason: "the app's own trouble")) {
            try stage.session.chatBlocking(messages: messages(), options: options(), listener: Throwing(), task: nil)
        }
    }

    @Test(arguments: [
        ("stranger", "stranger", PackRefusal.untrustedKey),
        ("other-model", "other_model", PackRefusal.otherModel),
        ("tampered", "tampered", PackRefusal.damaged),
    ])
    func aPackThatMustNotBeUsedIsRefusedWithFacts(name: String, prefix: String, refusal: PackRefusal) async throws {
        let stage = try await Stage()
        do {
            _ = try await stage.pack(name)
            Issue.record("\(name) was not refused")
        } catch SdkError.PackRefused(let seen, let expected, let actual, _) {
            #expect(seen == refusal)
            #expect(expected ?? "" == facts["\(prefix)_expected"])
            #expect(actual ?? "" == facts["\(prefix)_actual"])
        }
    }

    @Test func aFullDiskIsReportedInBytes() async throws {
        let stage = try await Stage()
        do {
            _ = try await stage.pack("huge", options: DownloadOptions(sizeBytesMax: UInt64.max))
            Issue.record("a petabyte was downloaded")
        } catch SdkError.DiskFull(let required, _) {
            #expect(String(required) == facts["huge_size_bytes"])
        }
    }

    @Test func aCancelledDownloadGoesOnWhereItStopped() async throws {
        let stage = try await Stage(folder: environment["EDGEWELD_STORE"]! + "-slow")
        let url = "\(facts["url"]!)/swift/slow.pack"
        for try await event in stage.store.download(for: stage.engine, from: url) {
            if case .progress(let progress) = event, progress.bytesDone > 0 { break }
        }
        var first: UInt64?
        for try await event in stage.store.download(for: stage.engine, from: url) {
            if case .progress(let progress) = event, first == nil { first = progress.bytesDone }
        }
        #expect(try #require(first) > 0)
    }

    @Test func aCancelledMergeLeavesTheModelAsItWas() async throws {
        let stage = try await Stage()
        let pack = try await stage.pack("good")
        let merge = Task { try await stage.engine.merge(pack) }
        try await Task.sleep(nanoseconds: 20_000_000)
        merge.cancel()
        await #expect(throws: CancellationError.self) { try await merge.value }
        #expect(stage.engine.mergedPack() == nil)
        #expect(try await stage.ask().text == facts["base_text"])
    }

    @Test func aConversationThatDoesNotFitIsRefusedWithBothCounts() async throws {
        let stage = try await Stage()
        let long = String(repeating: "word ", count: 1_000)
        do {
            _ = try await stage.session.chat([.user(long)])
            Issue.record("it fitted")
        } catch SdkError.ContextFull(let required, let available) {
            #expect(String(required) == facts["context_required"])
            #expect(String(available) == facts["context_length"])
        }
    }

    @Test func nothingIsAliveAfterTheLastReference() async throws {
        do {
            let stage = try await Stage()
            _ = try await stage.ask()
        }
        // Calls that an earlier test cancelled hold their objects until they have ended.
        for _ in 0..<250 where liveObjectCount() > 0 {
            try await Task.sleep(nanoseconds: 20_000_000)
        }
        #expect(liveObjectCount() == 0)
    }
}
