// What the SDK costs, measured from Kotlin: `cargo xtask sdk figures`. The bars are in docs/measurements.md.

import dev.edgeweld.*
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking

private val FACTS = File(System.getenv("EDGEWELD_SCENARIO")).readLines().associate { line ->
    val (name, value) = line.split("=", limit = 2)
    name to value.replace("\\n", "\n").replace("\\\\", "\\")
}

private fun fact(name: String) = FACTS.getValue(name)

private fun milliseconds(since: Long) = (System.nanoTime() - since) / 1e6

private fun List<Double>.median() = sorted()[size / 2]

private object Silent : TokenListener {
    override fun onToken(token: Token) {}

    override fun onPrefill(doneTokens: ULong, totalTokens: ULong) {}
}

private suspend fun load() = Engine.load(fact("model"), LoadOptions(threads = 2u, contextLength = 4_096u))

private suspend fun pack(engine: Engine, name: String): VerifiedPack =
    PackStore(System.getenv("EDGEWELD_STORE"), listOf(fact("trusted_key"))).use { store ->
        (store.download(engine, "${fact("url")}/figures/$name.pack").last() as DownloadEvent.Verified).pack
    }

private suspend fun firstCall() {
    val engine = load()
    val start = System.nanoTime()
    val session = engine.session()
    println("first call after load (a session): %.2f ms".format(milliseconds(start)))
    session.close()
    engine.close()
}

private suspend fun listenerCost(engine: Engine) {
    val costs = mutableListOf<Double>()
    var decode = 0.0
    engine.session().use { session ->
        repeat(40) { round ->
            val end = session.chatBlocking(listOf(userMessage("Tell story $round.")), GenerateOptions(maxTokens = 64u), Silent)
            costs.add(end.listenerMs * 1e3 / end.generatedTokens.toDouble())
            decode = end.decodeTokensPerSecond
        }
    }
    // The first rounds run before the JVM has compiled the path.
    println("listener per token: median %.1f µs, first stream %.1f µs (%.1f ms per token)".format(costs.median(), costs[0], 1e3 / decode))
}

/** From the cancellation of a coroutine to its end, [work] having run for a while. */
private suspend fun cancelLatency(name: String, after: Long, prepare: () -> Unit = {}, work: suspend () -> Unit) {
    val latencies = (0 until 10).map {
        prepare()
        val job = CoroutineScope(Dispatchers.Default).launch { work() }
        delay(after)
        check(job.isActive) { "$name ended before it was cancelled" }
        val start = System.nanoTime()
        job.cancelAndJoin()
        milliseconds(start)
    }
    println("cancel during $name: median %.1f ms, longest %.1f ms".format(latencies.median(), latencies.max()))
}

private suspend fun cancelLatencies(engine: Engine) {
    engine.session().use { session ->
        val long = GenerateOptions(maxTokens = 2_000u)
        cancelLatency("decode", 300) { session.stream(listOf(userMessage("Count to one thousand.")), long).collect {} }
        val book = listOf(userMessage("word ".repeat(3_500)))
        cancelLatency("prefill", 200, session::clear) { session.stream(book, long).collect {} }
    }
    pack(engine, "good").use { pack -> cancelLatency("merge", 150) { engine.merge(pack) } }
    val store = File(System.getenv("EDGEWELD_STORE") + "-cancel")
    cancelLatency("download", 300, store::deleteRecursively) {
        PackStore(store.path, listOf(fact("trusted_key"))).use {
            it.download(engine, "${fact("url")}/figures/slow.pack").collect {}
        }
    }
}

private suspend fun streams(engine: Engine) {
    val before = liveObjectCount()
    engine.session().use { session ->
        val one = GenerateOptions(maxTokens = 1u)
        repeat(10_000) { session.stream(listOf(userMessage("Hi")), one).collect {} }
    }
    println("10,000 streams: ${liveObjectCount() - before} objects left alive")
}

private fun residentKb() = File("/proc/self/status").readLines().first { it.startsWith("VmRSS") }.filter(Char::isDigit).toLong()

private suspend fun cycles() {
    val resident = (1..200).map {
        load().use { engine ->
            pack(engine, "good").use { engine.merge(it, MergeMode.SIDE_PATH) }
            engine.session().use { it.chat(listOf(userMessage("Hi")), GenerateOptions(maxTokens = 4u)) }
        }
        residentKb()
    }
    val growth = 100.0 * (resident.takeLast(10).average() / resident.subList(9, 19).average() - 1)
    println("200 load-merge-chat-close cycles: RSS ${resident[9]} KB after the 10th, ${resident.last()} KB after the last (%+.2f %%), ${liveObjectCount()} objects alive".format(growth))
}

fun main(args: Array<String>) = runBlocking {
    firstCall()
    load().use { engine ->
        listenerCost(engine)
        cancelLatencies(engine)
        if ("leaks" in args) streams(engine)
    }
    if ("leaks" in args) cycles()
}
