"""Well-known boards, and which of them a program fits on."""

from dataclasses import dataclass

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBoard:
    """A board that can be bought, with the memory that its maker names."""

    name: str
    processor: str
    flash: int
    """Bytes for programs and constants."""
    ram: int
    """Bytes that a program may use."""
    copies_constants: bool = False
    """Whether constants of plain C lie in RAM as well, as on an AVR."""
    source: str
    """Where the figures stand."""

    def fits(self, flash: int, ram: int) -> bool:
        """Whether a program of so many bytes fits; what else runs there comes on top."""
        needed = ram + flash if self.copies_constants else ram
        return flash <= self.flash and needed <= self.ram


BOARDS = (
    KnownBoard(
        name="Arduino Uno R3",
        processor="ATmega328P",
        flash=32 * KIB - 512,  # the bootloader's
        ram=2 * KIB,
        copies_constants=True,
        source="https://docs.arduino.cc/hardware/uno-rev3/",
    ),
    KnownBoard(
        name="Arduino Mega 2560",
        processor="ATmega2560",
        flash=248 * KIB,
        ram=8 * KIB,
        copies_constants=True,
        source="https://docs.arduino.cc/hardware/mega-2560/",
    ),
    KnownBoard(
        name="STM32F103 'Blue Pill'",
        processor="STM32F103C8, Cortex-M3",
        flash=64 * KIB,
        ram=20 * KIB,
        source="https://www.st.com/en/microcontrollers-microprocessors/stm32f103c8.html",
    ),
    KnownBoard(
        name="Arduino Zero",
        processor="SAMD21G18, Cortex-M0+",
        flash=256 * KIB,
        ram=32 * KIB,
        source="https://docs.arduino.cc/hardware/zero/",
    ),
    KnownBoard(
        name="BBC micro:bit v2",
        processor="nRF52833, Cortex-M4F",
        flash=512 * KIB,
        ram=128 * KIB,
        source="https://tech.microbit.org/hardware/",
    ),
    KnownBoard(
        name="Arduino Nano 33 BLE",
        processor="nRF52840, Cortex-M4F",
        flash=1 * MIB,
        ram=256 * KIB,
        source="https://docs.arduino.cc/hardware/nano-33-ble/",
    ),
    KnownBoard(
        name="STM32F407 Discovery",
        processor="STM32F407VG, Cortex-M4F",
        flash=1 * MIB,
        ram=128 * KIB,  # in one piece; 64 more are coupled to the core
        source="https://www.st.com/en/evaluation-tools/stm32f4discovery.html",
    ),
    KnownBoard(
        name="Raspberry Pi Pico",
        processor="RP2040, Cortex-M0+",
        flash=2 * MIB,
        ram=264 * KIB,
        source="https://www.raspberrypi.com/documentation/microcontrollers/pico-series.html",
    ),
    KnownBoard(
        name="ESP32-DevKitC",
        processor="ESP32-WROOM-32, Xtensa LX6",
        flash=4 * MIB,
        ram=160 * KIB,  # what static data may take of the 520 KiB
        source="https://docs.espressif.com/projects/esp-idf/en/stable/esp32/api-guides/memory-types.html",
    ),
    KnownBoard(
        name="Raspberry Pi Pico 2",
        processor="RP2350, Cortex-M33",
        flash=4 * MIB,
        ram=520 * KIB,
        source="https://www.raspberrypi.com/documentation/microcontrollers/pico-series.html",
    ),
    KnownBoard(
        name="Teensy 4.1",
        processor="i.MX RT1062, Cortex-M7",
        flash=7936 * KIB,
        ram=1 * MIB,
        source="https://www.pjrc.com/store/teensy41.html",
    ),
)
"""From the smallest to the largest."""


def boards(flash: int, ram: int) -> tuple[KnownBoard, ...]:
    """The boards that a program of so many bytes fits on, the smallest first."""
    return tuple(board for board in BOARDS if board.fits(flash, ram))
