// What cancelling costs, measured from Swift: `cargo xtask sdk figures`. Fails if a figure misses its bar.

import Edgeweld
import Foundation

/// A cancelled call may take this and the time of one token.
let cancelMs = 20.0

let environment = ProcessInfo.processInfo.environment
let text = try String(contentsOfFile: environment["EDGEWELD_SCENARIO"]!, encoding: .utf8)
let facts = Dictionary(
    uniqueKeysWithValues: text.split(separator: "\n").map { line in
        let parts = line.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        return (parts[0], parts[1])
    })
let folder = environment["EDGEWELD_STORE"]!
var missed = false

@MainActor
func figure(_ name: String, _ value: Double, bar: Double) {
    missed = missed || value > bar
    let verdict = value <= bar ? "met" : "MISSED"
    print("\(name): \(String(format: "%.2f", value)) ms (bar \(String(format: "%.2f", bar)), \(verdict))")
}

/// From the cancellation of a task to its end, the work having run for a while.
@MainActor
func cancelLatency(
    _ name: String, after: Duration, tokenMs: Double, prepare: () throws -> Void = {},
    work: @escaping @Sendable () async throws -> Void
) async throws {
    var latencies: [Double] = []
    for _ in 0..<10 {
        try prepare()
        let task = Task(operation: work)
        try await Task.sleep(for: after)
        let elapsed = await ContinuousClock().measure {
            task.cancel()
            _ = await task.result
        }
        latencies.append(elapsed / .milliseconds(1))
    }
    print("cancel during \(name), median of 10: \(String(format: "%.2f", latencies.sorted()[5])) ms")
    figure("cancel during \(name), longest of 10", latencies.max()!, bar: tokenMs + cancelMs)
}

let engine = try await Engine.load(facts["model"]!, options: LoadOptions(threads: 2, contextLength: 4_096))
let session = try engine.session()
let long = GenerateOptions(maxTokens: 2_000)
let count = [Message.user("Count to one thousand.")]
let book = [Message.user(String(repeating: "word ", count: 3_500))]
let tokenMs = 1e3 / (try await session.chat(count, options: GenerateOptions(maxTokens: 64))).decodeTokensPerSecond
try await cancelLatency("decode", after: .milliseconds(150), tokenMs: tokenMs) { [session] in
    _ = try await session.chat(count, options: long)
}
try await cancelLatency("prefill", after: .milliseconds(200), tokenMs: tokenMs, prepare: session.clear) { [session] in
    _ = try await session.chat(book, options: long)
}

func download(_ name: String, to folder: String) async throws -> VerifiedPack? {
    let store = try PackStore(folder: folder, trustedKeys: [facts["trusted_key"]!])
    var pack: VerifiedPack?
    for try await event in store.download(for: engine, from: "\(facts["url"]!)/figures/\(name).pack") {
        if case .verified(let verified) = event { pack = verified }
    }
    return pack
}

let pack = try await download("good", to: folder)!
try await cancelLatency("merge", after: .milliseconds(150), tokenMs: tokenMs) { _ = try await engine.merge(pack) }
let slow = folder + "-cancel"
try await cancelLatency(
    "download", after: .milliseconds(300), tokenMs: tokenMs,
    prepare: { try? FileManager.default.removeItem(atPath: slow) }
) { _ = try await download("slow", to: slow) }
exit(missed ? 1 : 0)
