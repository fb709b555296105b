extension Engine {
    /// Loads the GGUF file at a path on a background thread. `onProgress` is told the layers loaded and the layers in all,
    /// on that thread.
    public static func load(
        _ path: String,
        options: LoadOptions = LoadOptions(),
        onProgress: (@Sendable (UInt64, UInt64) -> Void)? = nil
    ) async throws -> Engine {
        try await onBackgroundThread { task in
            try loadBlocking(path: path, options: options, listener: onProgress.map(LoadRelay.init), task: task)
        }
    }

    /// Puts a verified pack into the model on a background thread. Cancelled, the model is as before. `noiseMax` is the noise that
    /// `.auto` lets rounding add, as a share of the weights; 0.01 by default.
    public func merge(
        _ pack: VerifiedPack,
        mode: MergeMode = .auto,
        memoryBudgetBytes: UInt64? = nil,
        noiseMax: Double? = nil,
        onProgress: (@Sendable (MergeProgress) -> Void)? = nil
    ) async throws -> MergeReport {
        let options = MergeOptions(mode: mode, memoryBudgetBytes: memoryBudgetBytes, noiseMax: noiseMax)
        return try await onBackgroundThread { task in
            try self.mergeBlocking(pack: pack, options: options, listener: onProgress.map(MergeRelay.init), task: task)
        }
    }

    /// Saves the merged model as a GGUF file, on a background thread.
    public func saveMerged(to path: String) async throws {
        try await onBackgroundThread { task in try self.saveMergedBlocking(path: path, task: task) }
    }
}

/// What a download yields: any number of `progress`, then one `verified`.
public enum DownloadEvent: Sendable {
    /// The download came this far.
    case progress(DownloadProgress)
    /// The pack is here and passed every check.
    case verified(VerifiedPack)
}

extension PackStore {
    /// Downloads a pack and verifies it for the engine's model; ends with the verified pack. What arrived before a cancellation
    /// stays, and the next download goes on from there. The source is an `https` URL, or the path of a file that the app
    /// has already, such as one from a background `URLSession`.
    public func download(
        for engine: Engine,
        from source: String,
        options: DownloadOptions = DownloadOptions()
    ) -> AsyncThrowingStream<DownloadEvent, Error> {
        streamFromBackgroundThread { task, continuation in
            let listener = DownloadRelay { continuation.yield(.progress($0)) }
            let pack = try self.downloadBlocking(
                engine: engine, source: source, options: options, listener: listener, task: task)
            continuation.yield(.verified(pack))
        }
    }
}

private final class LoadRelay: LoadListener {
    private let tell: @Sendable (UInt64, UInt64) -> Void

    init(_ tell: @escaping @Sendable (UInt64, UInt64) -> Void) {
        self.tell = tell
    }

    func onLoad(doneLayers: UInt64, totalLayers: UInt64) throws {
        tell(doneLayers, totalLayers)
    }
}

private final class MergeRelay: MergeListener {
    private let tell: @Sendable (MergeProgress) -> Void

    init(_ tell: @escaping @Sendable (MergeProgress) -> Void) {
        self.tell = tell
    }

    func onMerge(progress: MergeProgress) throws {
        tell(progress)
    }
}

private final class DownloadRelay: DownloadListener {
    private let tell: @Sendable (DownloadProgress) -> Void

    init(_ tell: @escaping @Sendable (DownloadProgress) -> Void) {
        self.tell = tell
    }

    func onDownload(progress: DownloadProgress) throws {
        tell(progress)
    }
}
