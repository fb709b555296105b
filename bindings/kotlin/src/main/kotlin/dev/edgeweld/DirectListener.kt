package dev.edgeweld

import com.sun.jna.Callback
import com.sun.jna.Native
import com.sun.jna.Pointer
import java.nio.ByteOrder

/**
 * Answers a conversation as the function of the same name with a [TokenListener], and tells [onToken] each token on this thread. A
 * token comes here on a shorter way, in a fraction of the time. What [onToken] throws ends the turn and is thrown here.
 */
fun Session.chatBlocking(
    messages: List<Message>,
    options: GenerateOptions = GenerateOptions(),
    task: TaskHandle? = null,
    onToken: (Token) -> Unit,
): Generation = DirectListener.telling(onToken) { listener -> chatBlocking(messages, options, listener, task) }

/** As [chatBlocking] with a function, but continues a text without a chat template. */
fun Session.completeBlocking(
    text: String,
    options: GenerateOptions = GenerateOptions(),
    task: TaskHandle? = null,
    onToken: (Token) -> Unit,
): Generation = DirectListener.telling(onToken) { listener -> completeBlocking(text, options, listener, task) }

/** Is given where a token lies during the call and how many bytes it has; returns 0 for the turn to go on. */
internal interface TokenCallback : Callback {
    fun callback(address: Long, sizeBytes: Long): Int
}

internal object DirectLibrary {
    init {
        Native.register(
            DirectLibrary::class.java,
            System.getProperty("uniffi.component.edgeweld_ffi.libraryOverride") ?: "edgeweld_ffi",
        )
    }

    external fun edgeweld_ffi_direct_listener(onToken: TokenCallback): Long
}

/**
 * The one listener of this process that lies in Rust and calls back with numbers, for which JNA needs neither reflection nor
 * structs. A turn is answered on the thread that asks, so the thread tells whose token it is.
 */
private object DirectListener {
    private class Turn(val onToken: (Token) -> Unit) {
        var failure: Throwable? = null
    }

    private val turns = ThreadLocal<Turn>()

    /** JNA holds callbacks weakly; this one lives as long as the process. */
    private val callback = object : TokenCallback {
        override fun callback(address: Long, sizeBytes: Long): Int {
            val turn = turns.get()
            try {
                val bytes = Pointer(address).getByteBuffer(0, sizeBytes).order(ByteOrder.BIG_ENDIAN)
                turn.onToken(FfiConverterTypeToken.read(bytes))
                return 0
            } catch (failure: Throwable) {
                turn.failure = failure
                return 1
            }
        }
    }

    private val listener = FfiConverterTypeTokenListener.lift(DirectLibrary.edgeweld_ffi_direct_listener(callback))

    fun telling(onToken: (Token) -> Unit, call: (TokenListener) -> Generation): Generation {
        // A listener may ask another session.
        val outer = turns.get()
        val turn = Turn(onToken)
        turns.set(turn)
        try {
            return call(listener)
        } catch (error: Exception) {
            throw turn.failure ?: error
        } finally {
            if (outer == null) turns.remove() else turns.set(outer)
        }
    }
}
