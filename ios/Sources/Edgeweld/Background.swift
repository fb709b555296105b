import Dispatch

/// Runs a blocking call off Swift's cooperative threads. Cancelling the task cancels the call's handle; the function returns
/// when the call has ended, so that nothing goes on in the background.
func onBackgroundThread<Value: Sendable>(
    _ call: @escaping @Sendable (TaskHandle) throws -> Value
) async throws -> Value {
    let handle = TaskHandle()
    do {
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                DispatchQueue.global(qos: .userInitiated).async {
                    continuation.resume(with: Result { try call(handle) })
                }
            }
        } onCancel: {
            handle.cancel()
        }
    } catch SdkError.Cancelled where Task.isCancelled {
        throw CancellationError()
    }
}

/// Runs a blocking call off Swift's cooperative threads and yields what its listener tells. Dropping or cancelling the stream
/// cancels the call's handle.
func streamFromBackgroundThread<Event: Sendable>(
    _ call: @escaping @Sendable (TaskHandle, AsyncThrowingStream<Event, Error>.Continuation) throws -> Void
) -> AsyncThrowingStream<Event, Error> {
    AsyncThrowingStream { continuation in
        let handle = TaskHandle()
        continuation.onTermination = { _ in handle.cancel() }
        DispatchQueue.global(qos: .userInitiated).async {
            do {
                try call(handle, continuation)
                continuation.finish()
            } catch {
                continuation.finish(throwing: error)
            }
        }
    }
}
