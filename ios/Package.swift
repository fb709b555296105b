// swift-tools-version: 6.0
import Foundation
import PackageDescription

// The C side has one module name, EdgeweldFFI, wherever it comes from:
//  * a host's shared library (Linux, or macOS with EDGEWELD_HOST_LIBRARY set): a module map and the header; the library's
//    folder is given with -Xlinker -L…, as `cargo xtask sdk swift` does;
//  * Apple devices: the XCFramework that `cargo xtask ios` makes. A release names it by `url:` and `checksum:` instead.
#if os(Linux)
let isHost = true
#else
let isHost = ProcessInfo.processInfo.environment["EDGEWELD_HOST_LIBRARY"] != nil
#endif

let ffi: Target = isHost
    ? .systemLibrary(name: "EdgeweldFFI", path: "Sources/EdgeweldFFI")
    : .binaryTarget(name: "EdgeweldFFI", path: "EdgeweldFFI.xcframework")

let package = Package(
    name: "Edgeweld",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [.library(name: "Edgeweld", targets: ["Edgeweld"])],
    targets: [
        ffi,
        .target(
            name: "Edgeweld",
            dependencies: ["EdgeweldFFI"],
            linkerSettings: [
                .linkedFramework("Metal", .when(platforms: [.iOS, .macOS])),
                .linkedFramework("MetalPerformanceShaders", .when(platforms: [.iOS, .macOS])),
                .linkedFramework("Security", .when(platforms: [.iOS, .macOS])),
            ]
        ),
        .testTarget(name: "EdgeweldTests", dependencies: ["Edgeweld"]),
    ],
    swiftLanguageModes: [.v6]
)
