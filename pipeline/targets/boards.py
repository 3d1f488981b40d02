"""Well-known boards, and which of them a program in C fits on."""

from dataclasses import dataclass

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True, slots=True)
class KnownBoard:
    """A board that can be bought, with the memory that its maker names."""

    name: str
    flash: int
    """Bytes for programs and constants."""
    ram: int
    """Bytes that static memory and the stack may take, in one piece."""
    source: str
    """Where the maker says so."""
    copies_constants: bool = False
    """Whether constants of plain C lie in RAM as well: on an AVR, on a Teensy 4."""

    def fits(self, flash: int, ram: int) -> bool:
        """Whether a program of so many bytes fits; what else runs there comes on top."""
        needed = ram + flash if self.copies_constants else ram
        return flash <= self.flash and needed <= self.ram


ARDUINO = "https://docs.arduino.cc/hardware/"
STM32 = "https://github.com/stm32duino/Arduino_Core_STM32/blob/main/boards.txt"
PICO = "https://www.raspberrypi.com/documentation/microcontrollers/pico-series.html"
BOARDS = (
    # ATmega, 8 bits. A bootloader takes 0.5 and 8 KiB.
    KnownBoard(
        "Arduino Uno R3", 32 * KIB - 512, 2 * KIB, f"{ARDUINO}uno-rev3/", copies_constants=True
    ),
    KnownBoard(
        "Arduino Mega 2560", 248 * KIB, 8 * KIB, f"{ARDUINO}mega-2560/", copies_constants=True
    ),
    # STM32F103C8, Cortex-M3.
    KnownBoard("STM32F103 'Blue Pill'", 64 * KIB, 20 * KIB, STM32),
    # SAMD21G18, Cortex-M0+.
    KnownBoard("Arduino Zero", 256 * KIB, 32 * KIB, f"{ARDUINO}zero/"),
    # nRF52833 and nRF52840, Cortex-M4F.
    KnownBoard("BBC micro:bit v2", 512 * KIB, 128 * KIB, "https://tech.microbit.org/hardware/"),
    KnownBoard("Arduino Nano 33 BLE", 1 * MIB, 256 * KIB, f"{ARDUINO}nano-33-ble/"),
    # STM32F407VG, Cortex-M4F. 64 KiB more are coupled to the core.
    KnownBoard("STM32F407 Discovery", 1 * MIB, 128 * KIB, STM32),
    # Xtensa LX6. The partition of the program, and what of 520 KiB may be static.
    KnownBoard(
        "ESP32-DevKitC",
        1 * MIB,
        160 * KIB,
        "https://docs.espressif.com/projects/esp-idf/en/stable/esp32/api-guides/memory-types.html",
    ),
    # RP2040, Cortex-M0+, and RP2350, Cortex-M33.
    KnownBoard("Raspberry Pi Pico", 2 * MIB, 264 * KIB, PICO),
    KnownBoard("Raspberry Pi Pico 2", 4 * MIB, 520 * KIB, PICO),
    # i.MX RT1062, Cortex-M7. Constants lie in its 512 KiB of coupled memory, if not PROGMEM.
    KnownBoard(
        "Teensy 4.1",
        7936 * KIB,
        512 * KIB,
        "https://github.com/PaulStoffregen/cores/blob/master/teensy4/imxrt1062_t41.ld",
        copies_constants=True,
    ),
)
"""From the smallest to the largest."""


def boards(flash: int, ram: int) -> tuple[KnownBoard, ...]:
    """The boards that a program of so many bytes fits on, the smallest first."""
    return tuple(board for board in BOARDS if board.fits(flash, ram))
