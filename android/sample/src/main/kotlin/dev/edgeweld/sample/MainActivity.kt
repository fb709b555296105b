package dev.edgeweld.sample

import android.app.Application
import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.rememberLauncherForActivityResult
import androidx.activity.compose.setContent
import androidx.activity.result.contract.ActivityResultContracts.OpenDocument
import androidx.activity.viewModels
import androidx.compose.foundation.layout.safeDrawingPadding
import androidx.compose.material3.MaterialTheme
import androidx.compose.ui.Modifier
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope

/** Keeps the model when the screen turns. */
class ModelHolder(app: Application) : AndroidViewModel(app) {
    val model = ChatModel(app.filesDir, app.noBackupFilesDir.resolve("packs"), viewModelScope)

    override fun onCleared() = model.close()
}

class MainActivity : ComponentActivity() {
    private val holder: ModelHolder by viewModels()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContent {
            val picker = rememberLauncherForActivityResult(OpenDocument()) { document ->
                document?.let { holder.model.loadModel { contentResolver.openInputStream(it) } }
            }
            MaterialTheme { Screens(holder.model, { picker.launch(arrayOf("*/*")) }, Modifier.safeDrawingPadding()) }
        }
    }
}
