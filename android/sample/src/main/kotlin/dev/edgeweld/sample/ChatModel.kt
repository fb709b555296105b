package dev.edgeweld.sample

import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateListOf
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.setValue
import dev.edgeweld.*
import java.io.File
import java.io.InputStream
import java.util.concurrent.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/** One row of the comparison. */
data class Measured(val label: String, val promptTokens: ULong, val firstTokenMs: Double, val cacheBytes: ULong)

/**
 * The model, the pack and the conversation. Nothing here is Android's, so a desktop JVM can run it.
 *
 * @param files where the model is copied to
 * @param packs where packs are kept: not backed up
 * @param scope what the work runs in
 */
class ChatModel(private val files: File, private val packs: File, private val scope: CoroutineScope) : AutoCloseable {
    var status by mutableStateOf("Choose a GGUF model file")
        private set
    var progress by mutableStateOf<Float?>(null)
        private set
    var systemPrompt by mutableStateOf("")
    val messages = mutableStateListOf<Message>()
    val measured = mutableStateListOf<Measured>()
    val isReady get() = session != null
    var isAnswering by mutableStateOf(false)
        private set

    private var engine: Engine? = null
    private var session by mutableStateOf<Session?>(null)
    private var turn: Job? = null

    /** Copies the document into the app's files, because weights are memory-mapped, and loads it. */
    fun loadModel(open: () -> InputStream?): Job = work {
        val file = File(files, "model.gguf")
        close()
        status = "Copying the model"
        withContext(Dispatchers.IO) { open()?.use { input -> file.outputStream().use(input::copyTo) } }
        status = "Loading"
        val loaded = Engine.load(file.path) { done, total -> progress = done.toFloat() / total.toFloat() }
        engine = loaded
        session = loaded.session()
        status = "${loaded.info().architecture}, ${loaded.info().quantization}"
    }

    /** Downloads the pack, verifies and merges it. */
    fun loadPack(url: String, trustedKey: String): Job = work {
        val engine = engine ?: return@work
        PackStore(packs.path, listOf(trustedKey.trim())).use { store ->
            store.download(engine, url.trim()).collect { event ->
                when (event) {
                    is DownloadEvent.Progress -> {
                        val done = event.progress.bytesDone
                        progress = event.progress.bytesTotal?.let { total -> done.toFloat() / total.toFloat() }
                        status = "$done bytes"
                    }
                    is DownloadEvent.Verified -> event.pack.use { pack ->
                        status = "Merging"
                        val budget = Runtime.getRuntime().maxMemory().toULong() / 2u
                        status = engine.merge(pack, MergeMode.AUTO, budget).reason
                    }
                }
            }
        }
    }

    fun removePack(): Job = work {
        engine?.unmerge()
        status = "Base model"
    }

    fun send(text: String): Job {
        messages.add(userMessage(text))
        return work { answer() }.also { turn = it }
    }

    fun stop() {
        turn?.cancel()
    }

    private suspend fun answer() {
        val session = session ?: return
        val conversation = listOf(systemMessage(systemPrompt)).filter { it.content.isNotEmpty() } + messages
        isAnswering = true
        messages.add(assistantMessage(""))
        try {
            var end: Generation? = null
            session.stream(conversation, onEnd = { end = it }).collect { token ->
                messages[messages.lastIndex] = assistantMessage(messages.last().content + token.text)
            }
            end?.let { measure(session, it) }
        } finally {
            isAnswering = false
        }
    }

    /** The comparison: what the prompt costs in each turn, and what the pack saves. */
    private fun measure(session: Session, end: Generation) {
        val label = if (end.arm == Arm.PACK || end.arm == Arm.PACK_ALONE) "pack" else "prompt"
        measured.add(Measured(label, end.promptTokens, end.timeToFirstTokenMs, session.cacheSizeBytes()))
    }

    private fun work(block: suspend () -> Unit): Job = scope.launch {
        try {
            block()
        } catch (cancelled: CancellationException) {
            throw cancelled
        } catch (error: SdkException) {
            status = explain(error)
        } finally {
            progress = null
        }
    }

    private fun explain(error: SdkException): String = when (error) {
        is SdkException.DiskFull -> "Make room: ${error.requiredBytes} bytes are needed, ${error.availableBytes} are free"
        is SdkException.Network -> "No connection: ${error.reason}"
        is SdkException.PackRefused -> "This pack cannot be used here (${error.refusal}): ${error.reason}"
        is SdkException.ContextFull -> "The conversation is too long; start a new one"
        is SdkException.InvalidModel -> "This is not a model that runs here: ${error.reason}"
        else -> error.message.orEmpty()
    }

    override fun close() {
        session?.close()
        engine?.close()
        session = null
        engine = null
    }
}
