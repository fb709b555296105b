// What the Rust run of the scenario saw: lines of `name=value`. Compiled into each of the programs beside this file.

import java.io.File

private val FACTS = File(System.getenv("EDGEWELD_SCENARIO")).readLines().associate { line ->
    val (name, value) = line.split("=", limit = 2)
    name to value.replace("\\n", "\n").replace("\\\\", "\\")
}

internal fun fact(name: String) = FACTS.getValue(name)
