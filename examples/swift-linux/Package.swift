// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "Chat",
    platforms: [.macOS(.v12)],
    dependencies: [.package(name: "Edgeweld", path: "../../ios")],
    targets: [.executableTarget(name: "Chat", dependencies: [.product(name: "Edgeweld", package: "Edgeweld")])]
)
