plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
    id("org.jetbrains.dokka")
    `maven-publish`
}

val workspace = rootDir.parentFile

android {
    namespace = "dev.edgeweld"
    compileSdk = 35
    // r28 links for 16 KB pages by default; our build script asks for them too.
    ndkVersion = "28.2.13676358"
    defaultConfig {
        minSdk = 24
        consumerProguardFiles("consumer-rules.pro")
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
    kotlinOptions { jvmTarget = "1.8" }
    // The same folders that the desktop JVM's tests compile.
    sourceSets["main"].kotlin.srcDirs(
        workspace.resolve("bindings/kotlin/src/main/kotlin"),
        workspace.resolve("bindings/kotlin/src/generated/kotlin"),
    )
    sourceSets["main"].jniLibs.srcDir(workspace.resolve("target/sdk/jniLibs"))
    publishing { singleVariant("release") { withSourcesJar() } }
}

val nativeLibraries by tasks.registering(Exec::class) {
    description = "Builds the Rust libraries of all ABIs into target/sdk/jniLibs."
    workingDir = workspace
    environment("ANDROID_NDK_HOME", android.ndkDirectory.path)
    commandLine("cargo", "xtask", "android")
}
tasks.matching { it.name.startsWith("merge") && it.name.endsWith("JniLibFolders") }.configureEach { dependsOn(nativeLibraries) }

dependencies {
    api("org.jetbrains.kotlinx:kotlinx-coroutines-core:1.8.1")
    // As an AAR: the plain jar has no library for Android. 5.17 is the first for 16 KB pages; 5.18.1 mends a race.
    implementation("net.java.dev.jna:jna:5.19.1@aar")
}

publishing {
    publications.register<MavenPublication>("release") {
        groupId = "dev.edgeweld"
        artifactId = "edgeweld-android"
        version = "0.1.0"
        afterEvaluate { from(components["release"]) }
    }
}
