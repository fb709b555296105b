// Download a pack, merge it, ask a question with and without it:
//
//     java -cp edgeweld.jar:… MainKt MODEL.gguf PACK_URL TRUSTED_KEY STORE_FOLDER SYSTEM_PROMPT QUESTION

import dev.edgeweld.*
import kotlin.system.exitProcess
import kotlinx.coroutines.runBlocking

private suspend fun ask(session: Session, prompt: String, question: String) {
    val messages = listOf(systemMessage(prompt), userMessage(question))
    session.stream(messages, GenerateOptions(maxTokens = 48u)) { generation ->
        println("\n[${generation.arm}: ${generation.promptTokens} prompt tokens, first token after ${generation.timeToFirstTokenMs.toInt()} ms]")
    }.collect { token ->
        print(token.text)
        System.out.flush()
    }
}

private suspend fun run(model: String, url: String, key: String, folder: String, prompt: String, question: String) {
    Engine.load(model, LoadOptions(threads = 2u)).use { engine ->
        engine.session().use { session ->
            ask(session, prompt, question)
            PackStore(folder, listOf(key)).use { store ->
                store.download(engine, url).collect { event ->
                    when (event) {
                        is DownloadEvent.Progress -> System.err.println("${event.progress.bytesDone} bytes")
                        is DownloadEvent.Verified -> event.pack.use { pack ->
                            val report = engine.merge(pack, MergeMode.SIDE_PATH)
                            println("[merged in ${report.elapsedMs.toInt()} ms: ${report.reason}]")
                        }
                    }
                }
            }
            ask(session, prompt, question)
        }
    }
}

fun main(args: Array<String>) {
    if (args.size != 6) {
        System.err.println("usage: MODEL.gguf PACK_URL TRUSTED_KEY STORE_FOLDER SYSTEM_PROMPT QUESTION")
        exitProcess(2)
    }
    try {
        runBlocking { run(args[0], args[1], args[2], args[3], args[4], args[5]) }
    } catch (error: SdkException) {
        System.err.println("${error::class.simpleName}: ${error.message}")
        exitProcess(1)
    }
}
