import Edgeweld
import SwiftUI

/// One row of the comparison.
struct Measured: Identifiable {
    let id = UUID()
    let label: String
    let promptTokens: UInt64
    let firstTokenMs: Double
    let cacheBytes: UInt64
}

/// The model, the pack and the conversation.
@MainActor
final class ChatModel: ObservableObject {
    @Published private(set) var status = "Choose a GGUF model file"
    @Published private(set) var progress: Double?
    @Published private(set) var messages: [Message] = []
    @Published private(set) var measured: [Measured] = []
    @Published private(set) var isAnswering = false
    @Published var systemPrompt = ""
    @Published private var session: Session?

    private var engine: Engine?
    private var turn: Task<Void, Never>?

    var isReady: Bool { session != nil }

    /// Copies the picked document into the app's folder, because weights are memory-mapped, and loads it.
    func loadModel(_ document: URL) {
        work {
            let file = URL.documentsDirectory.appending(path: "model.gguf")
            self.status = "Copying the model"
            try await Task.detached {
                let isScoped = document.startAccessingSecurityScopedResource()
                defer { if isScoped { document.stopAccessingSecurityScopedResource() } }
                try? FileManager.default.removeItem(at: file)
                try FileManager.default.copyItem(at: document, to: file)
            }.value
            self.status = "Loading"
            (self.session, self.engine) = (nil, nil)
            let engine = try await Engine.load(file.path)
            self.engine = engine
            self.session = try engine.session()
            let info = try engine.info()
            self.status = "\(info.architecture), \(info.quantization)"
        }
    }

    /// Downloads the pack, verifies and merges it.
    func loadPack(url: String, trustedKey: String) {
        guard let engine else { return }
        work {
            let folder = URL.cachesDirectory.appending(path: "packs").path
            let store = try PackStore(folder: folder, trustedKeys: [trustedKey])
            for try await event in store.download(for: engine, from: url) {
                switch event {
                case .progress(let progress):
                    self.progress = progress.bytesTotal.map { Double(progress.bytesDone) / Double($0) }
                    self.status = "\(progress.bytesDone) bytes"
                case .verified(let pack):
                    self.status = "Merging"
                    self.status = try await engine.merge(pack).reason
                }
            }
        }
    }

    func removePack() {
        work {
            try self.engine?.unmerge()
            self.status = "Base model"
        }
    }

    func send(_ text: String) {
        guard let session else { return }
        messages.append(.user(text))
        let conversation = (systemPrompt.isEmpty ? [] : [Message.system(systemPrompt)]) + messages
        messages.append(.assistant(""))
        isAnswering = true
        turn = work {
            defer { self.isAnswering = false }
            for try await event in session.stream(conversation) {
                switch event {
                case .token(let token):
                    let last = self.messages.removeLast()
                    self.messages.append(.assistant(last.content + token.text))
                case .end(let end):
                    let label = end.arm == .pack || end.arm == .packAlone ? "pack" : "prompt"
                    self.measured.append(
                        Measured(
                            label: label, promptTokens: end.promptTokens, firstTokenMs: end.timeToFirstTokenMs,
                            cacheBytes: try session.cacheSizeBytes()))
                }
            }
        }
    }

    func stop() {
        turn?.cancel()
    }

    @discardableResult
    private func work(_ body: @escaping @MainActor () async throws -> Void) -> Task<Void, Never> {
        Task {
            do {
                try await body()
            } catch is CancellationError {
                // The person stopped it.
            } catch {
                status = explain(error)
            }
            progress = nil
        }
    }

    private func explain(_ error: Error) -> String {
        switch error {
        case SdkError.DiskFull(let required, let available):
            return "Make room: \(required) bytes are needed, \(available) are free"
        case SdkError.Network(_, _, let reason):
            return "No connection: \(reason)"
        case SdkError.PackRefused(let refusal, _, _, let reason):
            return "This pack cannot be used here (\(refusal)): \(reason)"
        case SdkError.ContextFull:
            return "The conversation is too long; start a new one"
        case SdkError.InvalidModel(let reason):
            return "This is not a model that runs here: \(reason)"
        default:
            return error.localizedDescription
        }
    }
}
