// The Android sample without its activity, on a desktop JVM: a model, a pack and two turns, then a picture of each screen.
// `cargo xtask android --host-check`; the pictures go to the folder that is the argument.

import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.Surface
import androidx.compose.ui.renderComposeScene
import dev.edgeweld.sample.ChatModel
import dev.edgeweld.sample.Screen
import dev.edgeweld.sample.Screens
import java.io.File
import kotlin.system.exitProcess
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.runBlocking
import org.jetbrains.skia.Bitmap
import org.jetbrains.skia.EncodedImageFormat
import org.jetbrains.skia.Image

private const val WIDTH = 360
private const val HEIGHT = 640

private suspend fun ChatModel.play() {
    loadModel { File(fact("model")).inputStream() }.join()
    assertTrue(isReady, status)
    systemPrompt = fact("prompt")
    send(fact("question")).join()
    loadPack("${fact("url")}/sample/good.pack", fact("trusted_key")).join()
    messages.clear()
    send(fact("question")).join()
    assertEquals(listOf("prompt", "pack"), measured.map { it.label }, status)
    assertTrue(measured[1].promptTokens < measured[0].promptTokens)
    assertTrue(messages.last().content.isNotEmpty())
}

private fun picture(model: ChatModel, screen: Screen): Image =
    renderComposeScene(WIDTH, HEIGHT) { MaterialTheme { Surface { Screens(model, {}, first = screen) } } }

private fun colors(picture: Image): Int {
    val pixels = Bitmap.makeFromImage(picture)
    return (0 until WIDTH * HEIGHT).mapTo(mutableSetOf()) { pixels.getColor(it % WIDTH, it / WIDTH) }.size
}

fun main(args: Array<String>) {
    val folder = File(System.getenv("EDGEWELD_STORE"), "sample").apply { mkdirs() }
    runBlocking {
        ChatModel(folder, folder.resolve("packs"), this).use { model ->
            model.play()
            for (screen in Screen.values()) {
                val picture = picture(model, screen)
                assertTrue(colors(picture) > 16, "$screen is empty")
                val png = checkNotNull(picture.encodeToData(EncodedImageFormat.PNG))
                File(args.single(), "${screen.name.lowercase()}.png").writeBytes(png.bytes)
            }
        }
    }
    println("the sample answers with the prompt and with the pack; its screens are in ${args.single()}")
    exitProcess(0)
}
