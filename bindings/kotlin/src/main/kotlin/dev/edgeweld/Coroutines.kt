package dev.edgeweld

import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.isActive
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/**
 * Loads the GGUF file at [modelPath] on a background thread. [onProgress] is told the layers loaded and the layers in all, on
 * that thread.
 */
suspend fun Engine.Companion.load(
    modelPath: String,
    options: LoadOptions = LoadOptions(),
    onProgress: ((done: ULong, total: ULong) -> Unit)? = null,
): Engine = onBackgroundThread { task ->
    loadBlocking(modelPath, options, onProgress?.let(::LoadProgress), task)
}

/**
 * Puts a verified pack into the model on a background thread. Cancelled, the model is as before.
 *
 * @param memoryBudgetBytes most bytes of merged weights to hold; `null` for no limit
 * @param noiseMax the noise that [MergeMode.AUTO] lets rounding add, as a share of the weights; `null` for 0.01
 */
suspend fun Engine.merge(
    pack: VerifiedPack,
    mode: MergeMode = MergeMode.AUTO,
    memoryBudgetBytes: ULong? = null,
    noiseMax: Double? = null,
    onProgress: ((MergeProgress) -> Unit)? = null,
): MergeReport = onBackgroundThread { task ->
    mergeBlocking(pack, MergeOptions(mode, memoryBudgetBytes, noiseMax), onProgress?.let(::MergeSteps), task)
}

/** Saves the merged model as a GGUF file, on a background thread. */
suspend fun Engine.saveMerged(path: String): Unit = onBackgroundThread { task -> saveMergedBlocking(path, task) }

/** What a download's flow emits: any number of [Progress], then one [Verified]. */
sealed interface DownloadEvent {
    /** The download came this far. */
    data class Progress(val progress: DownloadProgress) : DownloadEvent

    /** The pack is here and passed every check. The collector closes it. */
    data class Verified(val pack: VerifiedPack) : DownloadEvent
}

/**
 * Downloads a pack and verifies it for [engine]'s model; ends with the verified pack. Cancelling the collection stops it; what
 * arrived stays, and the next download goes on from there.
 *
 * @param source an `https` URL, or the path of a file that the app has already
 */
fun PackStore.download(
    engine: Engine,
    source: String,
    headers: Map<String, String> = emptyMap(),
    options: DownloadOptions = DownloadOptions(),
): Flow<DownloadEvent> = channelFlow {
    val listener = object : DownloadListener {
        override fun onDownload(progress: DownloadProgress) {
            trySend(DownloadEvent.Progress(progress))
        }
    }
    val pack = onBackgroundThread { task ->
        downloadBlocking(engine, source, options.copy(headers = options.headers + headers), listener, task)
    }
    send(DownloadEvent.Verified(pack))
}.buffer(Channel.UNLIMITED)

/**
 * The tokens of the answer to a conversation: all of it, as the app keeps it. The model runs on a background thread and does not
 * wait for the collector. Cancelling the collection stops it within one token.
 *
 * @param onEnd is told how the turn went, before the flow ends
 */
fun Session.stream(
    messages: List<Message>,
    options: GenerateOptions = GenerateOptions(),
    onEnd: (Generation) -> Unit = {},
): Flow<Token> = channelFlow {
    onEnd(onBackgroundThread { task -> chatBlocking(messages, options, task) { token -> trySend(token) } })
}.buffer(Channel.UNLIMITED)

/** Answers a conversation on a background thread. Cancelling the coroutine stops it within one token. */
suspend fun Session.chat(messages: List<Message>, options: GenerateOptions = GenerateOptions()): Generation =
    onBackgroundThread { task -> chatBlocking(messages, options, null, task) }

/** The app's message to the model; at most one, first. */
fun systemMessage(text: String): Message = Message(Role.SYSTEM, text)

/** A person's message. */
fun userMessage(text: String): Message = Message(Role.USER, text)

/** A model's answer. */
fun assistantMessage(text: String): Message = Message(Role.ASSISTANT, text)

/**
 * Runs a blocking call on [Dispatchers.IO]. Cancelling the coroutine cancels the call's handle; the coroutine ends when the
 * call has ended, so that nothing goes on in the background.
 */
private suspend fun <T> onBackgroundThread(call: (TaskHandle) -> T): T = TaskHandle().use { task ->
    // The scope ends after its watch, so that nobody uses the handle once it is closed.
    coroutineScope {
        val watch = launch(Dispatchers.Default, CoroutineStart.UNDISPATCHED) {
            try {
                awaitCancellation()
            } finally {
                task.cancel()
            }
        }
        try {
            val result = withContext(Dispatchers.IO + NonCancellable) { call(task) }
            if (!isActive) {
                (result as? AutoCloseable)?.close()
            }
            ensureActive()
            result
        } catch (cancelled: SdkException.Cancelled) {
            ensureActive()
            throw cancelled
        } finally {
            watch.cancel()
        }
    }
}

private class LoadProgress(private val tell: (ULong, ULong) -> Unit) : LoadListener {
    override fun onLoad(doneLayers: ULong, totalLayers: ULong) = tell(doneLayers, totalLayers)
}

private class MergeSteps(private val tell: (MergeProgress) -> Unit) : MergeListener {
    override fun onMerge(progress: MergeProgress) = tell(progress)
}
