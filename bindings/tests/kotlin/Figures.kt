// What the SDK costs, measured from Kotlin: `cargo xtask sdk figures`. Fails if a figure misses its bar.

import dev.edgeweld.*
import java.io.File
import kotlin.system.exitProcess
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking

private const val FIRST_CALL_MS = 5.0
private const val LISTENER_MICROS = 50.0
/** A cancelled call may take this and the time of one token. */
private const val CANCEL_MS = 20.0
private const val STREAMS = 10_000
/** Streams of which the median is taken. */
private const val STREAMS_MEASURED = 40

private var missed = 0

private fun figure(name: String, value: Double, unit: String, bar: Double) {
    val verdict = if (value <= bar) "met" else "MISSED"
    if (value > bar) missed += 1
    println("%-36s %8.2f %s (bar %.2f, %s)".format(name, value, unit, bar, verdict))
}

private fun milliseconds(since: Long) = (System.nanoTime() - since) / 1e6

private fun List<Double>.median() = sorted()[size / 2]

private object Silent : TokenListener {
    override fun onToken(token: Token) {}

    override fun onPrefill(doneTokens: ULong, totalTokens: ULong) {}
}

private suspend fun load() = Engine.load(fact("model"), LoadOptions(threads = 2u, contextLength = 4_096u))

private suspend fun pack(engine: Engine): VerifiedPack =
    PackStore(System.getenv("EDGEWELD_STORE"), listOf(fact("trusted_key"))).use { store ->
        (store.download(engine, "${fact("url")}/figures/good.pack").last() as DownloadEvent.Verified).pack
    }

private suspend fun firstCall() {
    val start = System.nanoTime()
    liveObjectCount()
    println("loading the library and checking it: %.0f ms".format(milliseconds(start)))
    load().use { engine ->
        val call = System.nanoTime()
        val session = engine.session()
        figure("first call after load, a session", milliseconds(call), "ms", FIRST_CALL_MS)
        session.close()
    }
}

/** A turn of 64 tokens, and how many microseconds its median token took to the listener and back. */
private suspend fun listenerCost(session: Session, name: String, turn: suspend (List<Message>, GenerateOptions) -> Generation): Double {
    session.clear()
    val costs = (0 until STREAMS_MEASURED).map { turn(listOf(userMessage("Tell story $it.")), GenerateOptions(maxTokens = 64u)).listenerUs }
    // The first rounds run before the JVM has compiled the path.
    println("token through $name, median of the first stream: %.1f µs".format(costs[0]))
    return costs.median()
}

/** Returns the time of a token in milliseconds. */
private suspend fun listenerCosts(engine: Engine): Double {
    var tokenMs = 0.0
    engine.session().use { session ->
        val function = listenerCost(session, "a function") { messages, options ->
            session.chatBlocking(messages, options) {}.also { tokenMs = 1e3 / it.decodeTokensPerSecond }
        }
        figure("token through a function", function, "µs", LISTENER_MICROS)
        val flow = listenerCost(session, "a flow") { messages, options ->
            lateinit var end: Generation
            session.stream(messages, options) { end = it }.collect {}
            end
        }
        println("token through a flow, which wakes its collector, without a bar: %.1f µs".format(flow))
        val generated = listenerCost(session, "a TokenListener") { messages, options ->
            session.chatBlocking(messages, options, Silent)
        }
        println("token through a TokenListener, without a bar: %.1f µs".format(generated))
    }
    println("a token takes %.1f ms".format(tokenMs))
    return tokenMs
}

/** From the cancellation of a coroutine to its end, the work having run for a while. */
private suspend fun cancelLatency(name: String, after: Long, tokenMs: Double, prepare: () -> Unit = {}, work: suspend () -> Unit) {
    val latencies = (0 until 10).map {
        prepare()
        val job = CoroutineScope(Dispatchers.Default).launch { work() }
        delay(after)
        check(job.isActive) { "$name ended before it was cancelled" }
        val start = System.nanoTime()
        job.cancelAndJoin()
        milliseconds(start)
    }
    println("cancel during $name, median of 10: %.2f ms".format(latencies.median()))
    figure("cancel during $name, longest of 10", latencies.max(), "ms", tokenMs + CANCEL_MS)
}

private suspend fun cancelLatencies(engine: Engine, tokenMs: Double) {
    engine.session().use { session ->
        val long = GenerateOptions(maxTokens = 2_000u)
        cancelLatency("decode", 150, tokenMs) { session.stream(listOf(userMessage("Count to one thousand.")), long).collect {} }
        val book = listOf(userMessage("word ".repeat(3_500)))
        cancelLatency("prefill", 200, tokenMs, session::clear) { session.stream(book, long).collect {} }
    }
    pack(engine).use { pack -> cancelLatency("merge", 150, tokenMs) { engine.merge(pack) } }
    val folder = File(System.getenv("EDGEWELD_STORE") + "-cancel")
    cancelLatency("download", 300, tokenMs, folder::deleteRecursively) {
        PackStore(folder.path, listOf(fact("trusted_key"))).use { store ->
            store.download(engine, "${fact("url")}/figures/slow.pack").collect {}
        }
    }
}

private suspend fun streams(engine: Engine) {
    val before = liveObjectCount()
    engine.session().use { session ->
        val one = GenerateOptions(maxTokens = 1u)
        repeat(STREAMS) { session.stream(listOf(userMessage("Hi")), one).collect {} }
    }
    figure("objects alive after $STREAMS streams", (liveObjectCount() - before).toDouble(), "", 0.0)
}

fun main(args: Array<String>) {
    runBlocking {
        if ("leaks" in args) {
            load().use { streams(it) }
        } else {
            firstCall()
            load().use { cancelLatencies(it, listenerCosts(it)) }
        }
    }
    exitProcess(if (missed > 0) 1 else 0)
}
