import SwiftUI

@main
struct EdgeweldSampleApp: App {
    @StateObject private var model = ChatModel()

    var body: some Scene {
        WindowGroup {
            TabView {
                SetUpView().tabItem { Label("Set up", systemImage: "gear") }
                ChatView().tabItem { Label("Chat", systemImage: "bubble.left") }
                CompareView().tabItem { Label("Compare", systemImage: "chart.bar") }
            }
            .environmentObject(model)
        }
    }
}
