package dev.edgeweld.sample

import androidx.compose.foundation.background
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Box
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.height
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.lazy.LazyColumn
import androidx.compose.foundation.lazy.items
import androidx.compose.material3.Button
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Tab
import androidx.compose.material3.TabRow
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.remember
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Modifier
import androidx.compose.ui.unit.dp
import dev.edgeweld.Role

/** The sample's screens, in the order of their tabs. */
enum class Screen(val title: String) { SET_UP("Set up"), CHAT("Chat"), COMPARE("Compare") }

/** The app below its window; [chooseModel] lets the person pick a file. */
@Composable
fun Screens(model: ChatModel, chooseModel: () -> Unit, modifier: Modifier = Modifier, first: Screen = Screen.SET_UP) {
    var screen by rememberSaveable { mutableStateOf(first) }
    Column(modifier.fillMaxSize()) {
        TabRow(screen.ordinal) {
            Screen.values().forEach { Tab(screen == it, onClick = { screen = it }, text = { Text(it.title) }) }
        }
        Column(Modifier.padding(16.dp), Arrangement.spacedBy(8.dp)) {
            Text(model.status, style = MaterialTheme.typography.bodySmall)
            model.progress?.let { Box(Modifier.fillMaxWidth(it).height(4.dp).background(MaterialTheme.colorScheme.primary)) }
            when (screen) {
                Screen.SET_UP -> SetUp(model, chooseModel)
                Screen.CHAT -> Chat(model)
                Screen.COMPARE -> Compare(model)
            }
        }
    }
}

@Composable
private fun SetUp(model: ChatModel, chooseModel: () -> Unit) {
    var url by rememberSaveable { mutableStateOf("") }
    var key by rememberSaveable { mutableStateOf("") }
    Button(onClick = chooseModel) { Text("Choose a model") }
    OutlinedTextField(model.systemPrompt, { model.systemPrompt = it }, Modifier.fillMaxWidth(), label = { Text("System prompt") })
    OutlinedTextField(url, { url = it }, Modifier.fillMaxWidth(), label = { Text("Pack URL") })
    OutlinedTextField(key, { key = it }, Modifier.fillMaxWidth(), label = { Text("Trusted key (ed25519:…)") })
    Row(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
        Button(onClick = { model.loadPack(url, key) }, enabled = model.isReady) { Text("Download and merge") }
        Button(onClick = { model.removePack() }, enabled = model.isReady) { Text("Remove") }
    }
}

@Composable
private fun Chat(model: ChatModel) {
    var text by remember { mutableStateOf("") }
    LazyColumn(verticalArrangement = Arrangement.spacedBy(8.dp)) {
        items(model.messages) { message ->
            val style = if (message.role == Role.USER) MaterialTheme.typography.labelLarge else MaterialTheme.typography.bodyMedium
            Text(message.content, style = style)
        }
        item {
            OutlinedTextField(text, { text = it }, Modifier.fillMaxWidth(), label = { Text("Message") })
            Row(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
                Button(
                    onClick = {
                        model.send(text)
                        text = ""
                    },
                    enabled = model.isReady && !model.isAnswering && text.isNotBlank(),
                ) { Text("Send") }
                Button(onClick = model::stop, enabled = model.isAnswering) { Text("Stop") }
            }
        }
    }
}

/** Each turn's tokens, time to first token and memory, with the prompt and with the pack. */
@Composable
private fun Compare(model: ChatModel) {
    LazyColumn(verticalArrangement = Arrangement.spacedBy(4.dp)) {
        items(model.measured) { row ->
            Text("${row.label}: ${row.promptTokens} tokens, first token after ${row.firstTokenMs.toInt()} ms, memory ${row.cacheBytes / 1024u} KB")
        }
    }
}
