// The scenario in Kotlin. `cargo xtask test` compiles and runs it on the JVM; what it must see comes from the Rust run.

import dev.edgeweld.*
import kotlin.system.exitProcess
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking

private val OPTIONS = GenerateOptions(maxTokens = fact("max_tokens").toUInt())
private val MESSAGES = listOf(systemMessage(fact("prompt")), userMessage(fact("question")))

/** What every test begins with; closed at its end. */
private class Stage(val engine: Engine, folder: String = System.getenv("EDGEWELD_STORE")) : AutoCloseable {
    val store = PackStore(folder, listOf(fact("trusted_key")))
    val session = engine.session()

    suspend fun pack(name: String, options: DownloadOptions = DownloadOptions()): VerifiedPack {
        val last = store.download(engine, "${fact("url")}/kotlin/$name.pack", options = options).last()
        return (last as DownloadEvent.Verified).pack
    }

    suspend fun merged() = pack("good").use { engine.merge(it, MergeMode.SIDE_PATH) }

    suspend fun ask() = session.chat(MESSAGES, OPTIONS)

    override fun close() {
        session.close()
        store.close()
        engine.close()
    }
}

private suspend fun stage(): Stage {
    val options = LoadOptions(threads = 2u, contextLength = fact("context_length").toUInt())
    var progress = 0uL to 1uL
    val engine = Engine.load(fact("model"), options) { done, total -> progress = done to total }
    assertEquals(progress.first, progress.second)
    return Stage(engine)
}

private val TESTS = listOf<Pair<String, suspend (Stage) -> Unit>>(
    "a pack replaces the prompt and leaves without a trace" to { stage ->
        assertEquals(fact("base_digest"), stage.engine.info().baseDigest)
        val prompted = stage.ask()
        assertEquals(Arm.PROMPT to fact("base_text"), prompted.arm to prompted.text)

        // The first connection is cut in the middle.
        val report = stage.merged()
        assertEquals(MergeMode.SIDE_PATH, report.chosen)
        assertEquals(fact("pack_digest"), stage.engine.mergedPack()?.digest)
        var end: Generation? = null
        val tokens = stage.session.stream(MESSAGES, OPTIONS) { end = it }.toList()
        val specialized = assertNotNull(end)
        assertEquals(Arm.PACK to fact("pack_text"), specialized.arm to specialized.text)
        assertTrue(specialized.promptTokens < prompted.promptTokens)
        assertEquals(fact("pack_text"), tokens.joinToString("") { it.text })

        stage.engine.unmerge()
        assertNull(stage.engine.mergedPack())
        assertEquals(fact("base_text"), stage.ask().text)
    },
    "a turn is cancelled and the session goes on" to { stage ->
        stage.merged()
        val some = stage.session.stream(MESSAGES, GenerateOptions(maxTokens = 400u)).take(3).toList()
        assertTrue(fact("pack_text").startsWith(some.joinToString("") { it.text }))
        TaskHandle().use { task ->
            var count = 0
            val cut = stage.session.chatBlocking(MESSAGES, OPTIONS, task) { if (++count == 3) task.cancel() }
            assertEquals(FinishReason.CANCELLED to 3uL, cut.finishReason to cut.generatedTokens)
            assertTrue(task.isFinished())
        }
        assertEquals(fact("pack_text"), stage.ask().text)
    },
    "what a listener throws arrives" to { stage ->
        fun throwing(error: Exception) = object : TokenListener {
            override fun onToken(token: Token) = throw error

            override fun onPrefill(doneTokens: ULong, totalTokens: ULong) {}
        }
        val typed = throwing(SdkException.Internal("the app's own trouble"))
        val seen = assertFailsWith<SdkException.Internal> { stage.session.chatBlocking(MESSAGES, OPTIONS, typed) }
        assertEquals("the app's own trouble", seen.reason)
        val untyped = throwing(IllegalStateException("no such widget"))
        val told = assertFailsWith<SdkException.Internal> { stage.session.chatBlocking(MESSAGES, OPTIONS, untyped) }
        assertTrue("no such widget" in told.reason, told.reason)
        val thrown = NoSuchElementException("no such widget")
        val caught = assertFailsWith<NoSuchElementException> { stage.session.chatBlocking(MESSAGES, OPTIONS) { throw thrown } }
        assertTrue(caught === thrown)
        assertEquals(fact("base_text"), stage.ask().text)
    },
    "a listener may ask another session" to { stage ->
        var text = ""
        var inner = ""
        stage.engine.session().use { other ->
            stage.session.chatBlocking(MESSAGES, OPTIONS) { token ->
                text += token.text
                if (inner.isEmpty()) {
                    other.chatBlocking(MESSAGES, OPTIONS) { inner += it.text }
                }
            }
        }
        assertEquals(fact("base_text") to fact("base_text"), text to inner)
    },
    "packs that must not be used are refused with facts" to { stage ->
        for ((name, prefix, refusal) in listOf(
            Triple("stranger", "stranger", PackRefusal.UNTRUSTED_KEY),
            Triple("other-model", "other_model", PackRefusal.OTHER_MODEL),
            Triple("tampered", "tampered", PackRefusal.DAMAGED),
        )) {
            val error = assertFailsWith<SdkException.PackRefused> { stage.pack(name) }
            assertEquals(refusal, error.refusal)
            assertEquals(fact("${prefix}_expected"), error.expected.orEmpty())
            assertEquals(fact("${prefix}_actual"), error.actual.orEmpty())
        }
        val error = assertFailsWith<SdkException.InvalidArgument> {
            PackStore(System.getenv("EDGEWELD_STORE"), listOf("not a key"))
        }
        assertEquals("trusted_keys", error.argument)
    },
    "a full disk is reported in bytes" to { stage ->
        val unlimited = DownloadOptions(sizeBytesMax = ULong.MAX_VALUE)
        val error = assertFailsWith<SdkException.DiskFull> { stage.pack("huge", unlimited) }
        assertEquals(fact("huge_size_bytes").toULong(), error.requiredBytes)
    },
    "a cancelled download goes on where it stopped" to { stage ->
        // In a store of its own: another test may have the same file.
        PackStore(System.getenv("EDGEWELD_STORE") + "-slow", listOf(fact("trusted_key"))).use { store ->
            val flow = store.download(stage.engine, "${fact("url")}/kotlin/slow.pack")
            flow.take(3).toList()
            val events = flow.toList()
            assertTrue((events.first() as DownloadEvent.Progress).progress.bytesDone > 0uL)
            (events.last() as DownloadEvent.Verified).pack.close()
        }
    },
    "a cancelled merge leaves the model as it was" to { stage ->
        stage.pack("good").use { pack ->
            runBlocking {
                val merge = launch(Dispatchers.Default, CoroutineStart.UNDISPATCHED) { stage.engine.merge(pack) }
                delay(20)
                merge.cancelAndJoin()
            }
        }
        assertNull(stage.engine.mergedPack())
        assertEquals(fact("base_text"), stage.ask().text)
    },
    "a conversation that does not fit is refused with both counts" to { stage ->
        val error = assertFailsWith<SdkException.ContextFull> {
            stage.session.chat(listOf(userMessage("word ".repeat(1_000))))
        }
        assertEquals(fact("context_required").toULong(), error.requiredTokens)
        assertEquals(fact("context_length").toULong(), error.availableTokens)
    },
    "a missing model is named" to { _ ->
        val error = assertFailsWith<SdkException.File> { Engine.load("/no/such/model.gguf") }
        assertEquals("/no/such/model.gguf", error.path)
    },
    "a closed object says so" to { stage ->
        stage.session.close()
        assertFailsWith<IllegalStateException> { stage.session.cachedTokens() }
    },
)

fun main() {
    var failed = 0
    for ((name, test) in TESTS) {
        try {
            val before = liveObjectCount()
            runBlocking { stage().use { test(it) } }
            assertEquals(before, liveObjectCount(), "something is still alive")
            println("ok      $name")
        } catch (error: Throwable) {
            failed += 1
            println("FAILED  $name")
            error.printStackTrace(System.out)
        }
    }
    println("${TESTS.size - failed} passed, $failed failed")
    exitProcess(if (failed > 0) 1 else 0)
}
