import Edgeweld
import SwiftUI
import UniformTypeIdentifiers

struct StatusView: View {
    @EnvironmentObject private var model: ChatModel

    var body: some View {
        Text(model.status).font(.caption)
        if let progress = model.progress {
            ProgressView(value: progress)
        }
    }
}

struct SetUpView: View {
    @EnvironmentObject private var model: ChatModel
    @State private var isPicking = false
    @State private var url = ""
    @State private var key = ""

    var body: some View {
        Form {
            StatusView()
            Button("Choose a model") { isPicking = true }
            TextField("System prompt", text: $model.systemPrompt, axis: .vertical)
            TextField("Pack URL", text: $url).textContentType(.URL)
            TextField("Trusted key (ed25519:…)", text: $key)
            Button("Download and merge") { model.loadPack(url: url, trustedKey: key) }.disabled(!model.isReady)
            Button("Remove") { model.removePack() }.disabled(!model.isReady)
        }
        .fileImporter(isPresented: $isPicking, allowedContentTypes: [.data]) { result in
            if case .success(let document) = result { model.loadModel(document) }
        }
    }
}

struct ChatView: View {
    @EnvironmentObject private var model: ChatModel
    @State private var text = ""

    var body: some View {
        VStack(alignment: .leading) {
            StatusView()
            List(Array(model.messages.enumerated()), id: \.offset) { _, message in
                Text(message.content).bold(message.role == .user)
            }
            HStack {
                TextField("Message", text: $text)
                if model.isAnswering {
                    Button("Stop") { model.stop() }
                } else {
                    Button("Send") {
                        model.send(text)
                        text = ""
                    }
                    .disabled(!model.isReady || text.isEmpty)
                }
            }
        }
        .padding()
    }
}

/// Each turn's tokens, time to first token and memory, with the prompt and with the pack.
struct CompareView: View {
    @EnvironmentObject private var model: ChatModel

    var body: some View {
        List(model.measured) { row in
            VStack(alignment: .leading) {
                Text(row.label).bold()
                Text("\(row.promptTokens) tokens, first token after \(Int(row.firstTokenMs)) ms, memory \(row.cacheBytes / 1024) KB")
            }
        }
    }
}
