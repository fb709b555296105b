/// What a turn yields: any number of `token`, then one `end`.
public enum TurnEvent: Sendable {
    /// A token was generated.
    case token(Token)
    /// How the turn went.
    case end(Generation)
}

extension Session {
    /// Answers a conversation: all of it, as the app keeps it. The model runs on a background thread and does not wait for the
    /// reader. Cancelling the reading task or dropping the stream stops it within one token.
    public func stream(
        _ messages: [Message],
        options: GenerateOptions = GenerateOptions()
    ) -> AsyncThrowingStream<TurnEvent, Error> {
        streamFromBackgroundThread { task, continuation in
            let listener = TokenRelay { continuation.yield(.token($0)) }
            let end = try self.chatBlocking(messages: messages, options: options, listener: listener, task: task)
            continuation.yield(.end(end))
        }
    }

    /// Answers a conversation on a background thread. Cancelling the task stops it within one token; the answer then is what
    /// there was so far.
    public func chat(_ messages: [Message], options: GenerateOptions = GenerateOptions()) async throws -> Generation {
        try await onBackgroundThread { task in
            try self.chatBlocking(messages: messages, options: options, listener: nil, task: task)
        }
    }
}

extension Message {
    /// The app's message to the model; at most one, first.
    public static func system(_ text: String) -> Message {
        Message(role: .system, content: text)
    }

    /// A person's message.
    public static func user(_ text: String) -> Message {
        Message(role: .user, content: text)
    }

    /// A model's answer.
    public static func assistant(_ text: String) -> Message {
        Message(role: .assistant, content: text)
    }
}

private final class TokenRelay: TokenListener {
    private let tell: @Sendable (Token) -> Void

    init(_ tell: @escaping @Sendable (Token) -> Void) {
        self.tell = tell
    }

    func onToken(token: Token) throws {
        tell(token)
    }

    func onPrefill(doneTokens: UInt64, totalTokens: UInt64) throws {}
}
